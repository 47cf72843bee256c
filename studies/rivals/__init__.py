"""Optimizers side by side on ten small tasks that no meta-training saw, each rival tuned."""

"""Optimizers side by side on the adaptation of small networks by LoRA, and why one is ahead."""

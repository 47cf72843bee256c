"""Optimizers side by side: tuned, run, counted, in tables and figures."""

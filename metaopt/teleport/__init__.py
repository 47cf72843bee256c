"""Teleports w -> g.w: engines that carry them out, guards, searches, and optimizers' states."""

"""What the loss looks like around weights: its curvature."""

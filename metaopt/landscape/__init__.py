"""The shape of the loss around given weights: its curvature."""

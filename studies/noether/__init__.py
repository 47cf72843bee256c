"""Where SGD goes on an orbit: charges, noise equilibria, what they do to training."""

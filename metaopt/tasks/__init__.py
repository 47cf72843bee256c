"""Tasks and task families: regression, your own, images, and variations of them for training."""

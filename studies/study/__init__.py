"""The study: all learned optimizers and controls meta-trained, compared, and written up."""

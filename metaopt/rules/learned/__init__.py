"""The LSTMs: what they see, what their outputs mean, and how large their steps are."""

"""A learned optimizer in a user's own loop: load it, step with it, share it."""

"""Mistakes of the user's, which end in one clear line and exit status 2."""


class UserError(ValueError):
    """The message is one line: the file, the field, what was found and what would be right."""

"""The one place where the version of the package is written."""

__version__ = "0.3.0"

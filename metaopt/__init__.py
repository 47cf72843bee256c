"""metaopt: learned optimizers that exploit parameter-space symmetry."""

from metaopt._version import __version__

__all__ = ["__version__"]

"""Symmetries of real models: found from their modules, applied in place."""

from metaopt.models.apply import teleport
from metaopt.models.find import symmetries
from metaopt.models.groups import Group, Skipped, Slot, Symmetries, Symmetry

__all__ = ["Group", "Skipped", "Slot", "Symmetries", "Symmetry", "symmetries", "teleport"]

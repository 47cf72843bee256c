"""Teleports by search, beside the controls that the published experiments lack."""

"""Trained networks joined, aligned and averaged: ``python -m studies.connectivity``."""

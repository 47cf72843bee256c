"""Curves, alignments and ensembles of trained networks."""

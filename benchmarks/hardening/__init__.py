"""Runs that are killed, disks that are full, files that are damaged: nothing may be lost."""

"""Keeps freed memory in the process, because the next outer step needs as much again."""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory instead of returning it to the operating system.

    Each outer step takes and frees hundreds of megabytes. The system clears memory page by page at
    its first use, and this would be paid again in every outer step.

    Returns:
        Whether the C library accepted the setting (glibc does).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST) and mallopt(_M_TRIM_THRESHOLD, _LARGEST))

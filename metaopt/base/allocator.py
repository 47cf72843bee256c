"""What the process does with memory that was freed: keep it, for the next window needs as much."""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep freed memory in the process instead of giving it back to the system and asking again.

    Each outer step frees and takes hundreds of megabytes; memory fresh from the system is cleared
    page by page at its first use. Returns whether the C library took the setting (glibc does).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST) and mallopt(_M_TRIM_THRESHOLD, _LARGEST))

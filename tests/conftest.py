"""Side by side (``pytest -n``), each process and what it starts gets one thread."""

from __future__ import annotations

import os

# Before torch is imported, which reads it once.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

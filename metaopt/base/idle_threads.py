"""Idle threads soon sleep instead of spinning: imported before torch, whose OpenMP reads it once.

Between two parallel loops the threads of OpenMP wait for each other at barriers. By default they
spin there, for some milliseconds (libgomp, which torch's wheels bundle, 300,000 times), and where
other processes keep the cores busy, a thread that spins holds the core that the one it waits for
would need. To sleep at once (``OMP_WAIT_POLICY=passive``) costs most of what two threads gain on a
quiet machine, since small operations follow each other closely; ``GOMP_SPINCOUNT`` in between costs
little on either (``python -m benchmarks.neighbour``). It is set here, for this process and those it
starts, unless the user has said how threads are to wait, or torch is loaded already.
"""

import os
import sys
from collections.abc import Container, MutableMapping

SPINS = "GOMP_SPINCOUNT"
FEW = "3000"
"""A hundredth of a millisecond or so: longer than most gaps between two parallel loops."""
OWN_WORDS = ("OMP_WAIT_POLICY", SPINS, "KMP_BLOCKTIME")
"""Variables with which users say how threads wait, in GNU's OpenMP and in LLVM's and Intel's."""


def sleep_at_barriers(environment: MutableMapping[str, str], loaded: Container[str]) -> bool:
    """Set the number of spins unless it is too late or the user has chosen; whether it was set.

    Args:
        environment: of the process.
        loaded: the names of the modules that are loaded.
    """
    if "torch" in loaded or any(name in environment for name in OWN_WORDS):
        return False
    environment[SPINS] = FEW
    return True


THREADS_SLEEP = sleep_at_barriers(os.environ, sys.modules)

"""Freed memory stays in the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from metaopt.base.allocator import keep_freed_memory

# Page faults of taking, filling and freeing 64 MB ten times, after it was done ten times before;
# by default, and then with the memory kept.
SCRIPT = """
import resource, torch
from metaopt.base.allocator import keep_freed_memory
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def fill():
    # Memory for alignment can make the first few miss what the ones before them left.
    for _ in range(10):
        torch.ones(2**24)
def measured():
    fill()
    before = faults()
    fill()
    return faults() - before
left = measured()
assert keep_freed_memory()
print(left, measured())
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library has no such setting")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    # A process of its own: this one has the setting by now.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=120
    )
    left, kept = map(int, done.stdout.split())
    assert kept * 10 < left

"""What ``import metaopt`` adds to ``import torch``: python -m benchmarks.import_time.

Each time is that of a fresh process; the two imports are timed one after the other within it, so
that both meet the same machine. Printed are medians, and what was added as a share of torch's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

from studies.output import write_json

_TIMED = """
import json, time
times = [time.perf_counter()]
for name in ("torch", "metaopt"):
    __import__(name)
    times.append(time.perf_counter())
import metaopt
metaopt.LearnedOptimizer
times.append(time.perf_counter())
print(json.dumps([later - earlier for earlier, later in zip(times, times[1:])]))
"""
PARTS = ("import torch", "import metaopt after it", "the first use of LearnedOptimizer")


def measured(repetitions: int) -> list[list[float]]:
    """Seconds of each part, for each of some fresh processes; the first one warms the disk."""
    command = [sys.executable, "-c", _TIMED]
    found = [json.loads(subprocess.check_output(command)) for _ in range(repetitions + 1)]
    return found[1:]


def main() -> None:
    """Measure, print a line for each part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=9, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    arguments = parser.parse_args()
    found = measured(arguments.repetitions)
    medians = [median(of_part) for of_part in zip(*found, strict=True)]
    for name, seconds in zip(PARTS, medians, strict=True):
        print(f"{name}: {seconds:.3f} s ({seconds / medians[0]:.2f} of torch's)")
    if arguments.json is not None:
        write_json(arguments.json, dict(zip(PARTS, zip(*found, strict=True), strict=True)))


if __name__ == "__main__":
    main()

"""The wheel as a user meets it: python -m benchmarks.wheel [--download].

Builds the wheel, installs it into a new virtual environment, and from an empty folder trains,
evaluates, shows, loads by name and takes drop-in steps. What the wheel depends on is borrowed from
the environment that runs this; with ``--download`` pip fetches it into the new one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from studies.output import ROOT

_SMALL = ["task={width: 4, inputs: 4, outputs: 4, samples: 4}", "validation.tasks=4"]
_TRAIN = [*_SMALL, "meta={batch: 4, outer_steps: 4, steps: 8, unroll: 4}"]
_EVAL = [_SMALL[0], "tasks=4", "steps=5", "bootstrap=20", "baselines=[]"]
_DROP_IN = """
import sys
import torch
import metaopt

assert metaopt.__file__.startswith(sys.prefix), metaopt.__file__
rule = metaopt.load("digits_update_tele")
print(rule)
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
optimizer = metaopt.LearnedOptimizer(model, "digits_update_tele")
x = torch.randn(64, 8)
losses = []
for _ in range(50):
    optimizer.zero_grad()
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"loss {losses[0]:.3g} to {losses[-1]:.3g}")
assert losses[-1] < losses[0]
"""


def sets(overrides: list[str]) -> list[str]:
    """Each as ``--set``."""
    return [part for override in overrides for part in ("--set", override)]


COMMANDS: list[tuple[list[str], int]] = [
    (["metaopt", "--version"], 0),
    (["metaopt", "fields"], 0),
    (["metaopt", "train", "--config", "coordinate_update_tele", *sets(_TRAIN)], 0),
    (["metaopt", "eval", *sets(_EVAL)], 0),
    (["metaopt", "show", "digits_update_tele"], 0),
    (["metaopt", "show", "runs/coordinate_update_tele"], 0),
    (["metaopt", "show", "lstm_update_tele"], 2),
    (["python", "-c", _DROP_IN], 0),
]
"""What is run, and how it is to end: the large optimizers are in no wheel."""


def environment() -> dict[str, str]:
    """Without what would find the repository's package."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def built(folder: Path) -> Path:
    """The wheel of this repository, built as ``python -m build`` does, by way of the sdist."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *folder.iterdir()])
    return wheel


def installed(wheel: Path, folder: Path, download: bool) -> Path:
    """A new virtual environment with the wheel; returns the folder of its commands."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    borrowing = ["-c", str(ROOT / "constraints.txt")] if download else ["--no-deps"]
    pip = [str(python), "-m", "pip", "install", "--quiet", *borrowing, str(wheel)]
    subprocess.run(pip, check=True, env=environment())
    if not download:
        # A path file within a borrowed folder is not read: an editable metaopt stays out.
        asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        own = subprocess.check_output(asked, text=True).strip()
        Path(own, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


def main() -> int:
    """Build, install, run everything; the exit status says whether all ended as they should."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--download", action="store_true", help="fetch dependencies afresh")
    download = parser.parse_args().download
    with tempfile.TemporaryDirectory() as scratch:
        wheel = built(Path(scratch, "dist"))
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB")
        commands = installed(wheel, Path(scratch, "environment"), download)
        empty = Path(scratch, "empty")
        empty.mkdir()
        wrong = 0
        for command, status in COMMANDS:
            print(f"$ {' '.join(command)}", flush=True)
            program = str(commands / command[0])
            done = subprocess.run([program, *command[1:]], cwd=empty, env=environment())
            if done.returncode != status:
                print(f"exit status {done.returncode}, expected {status}")
                wrong += 1
    print("all is well" if not wrong else f"{wrong} of {len(COMMANDS)} commands went wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

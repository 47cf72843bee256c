"""Threads soon sleep at barriers: set before torch is loaded, and never against the user's word."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metaopt.base.idle_threads import FEW, OWN_WORDS, SPINS, sleep_at_barriers

_BUNDLED = Path(torch.__file__).parent / "lib/libgomp.so.1"


def said(program: str, **given: str) -> subprocess.CompletedProcess[str]:
    """What a fresh process says, in whose environment nothing is set but what is given."""
    kept = {name: value for name, value in os.environ.items() if name not in OWN_WORDS}
    return subprocess.run(
        [sys.executable, "-c", program],
        env=kept | given,
        capture_output=True,
        text=True,
        check=True,
    )


def spins(program: str, **given: str) -> str:
    shown = f"{program}; import os; print(os.environ.get({SPINS!r}))"
    return said(shown, **given).stdout.strip()


def test_it_is_set_before_torch_and_not_after() -> None:
    assert spins("import metaopt") == FEW
    assert spins("import torch; import metaopt") == "None"


@pytest.mark.parametrize("name", OWN_WORDS)
def test_a_users_word_stands(name: str) -> None:
    environment = {name: "7"}
    assert not sleep_at_barriers(environment, ())
    assert environment == {name: "7"}


def test_it_is_set_once_and_only_while_torch_is_not_loaded() -> None:
    environment: dict[str, str] = {}
    assert not sleep_at_barriers(environment, ("numpy", "torch"))
    assert environment == {}
    assert sleep_at_barriers(environment, ("numpy",))
    assert environment == {SPINS: FEW}
    assert not sleep_at_barriers(environment, ("numpy",))


@pytest.mark.skipif(not _BUNDLED.is_file(), reason="torch bundles no libgomp here")
@pytest.mark.parametrize("first", ["metaopt", "benchmarks", "studies"])
def test_the_openmp_of_torch_has_read_it(first: str) -> None:
    told = said(f"import {first}, torch", OMP_DISPLAY_ENV="verbose").stderr
    assert f"{SPINS} = '{FEW}'" in told

"""The wheel and the source distribution: what is in them, how large, and that they agree."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from places import PRETRAINED, ROOT

import metaopt
from metaopt.base import shipped

LARGEST = 5_000_000
"""Bytes of a wheel."""
_PARTS = ["pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"]
_FOLDERS = ["metaopt", "configs", "checkpoints"]
# What pip and build call, in the environment as it is.
_BUILD = """
import sys
from setuptools import build_meta
getattr(build_meta, f"build_{sys.argv[1]}")(sys.argv[2])
"""


def build(kind: str, source: Path, out: Path) -> Path:
    """Build a ``wheel`` or an ``sdist`` of a source tree."""
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, kind, str(out)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built from, so that building leaves nothing in the repository."""
    folder = tmp_path_factory.mktemp("wheel") / "source"
    for name in _FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in _PARTS:
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    return build("wheel", source, source.parent / "wheel")


def content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_wheel_holds_the_package_and_what_ships(wheel: Path) -> None:
    assert wheel.stat().st_size < LARGEST
    found = content(wheel)
    for path in (ROOT / "metaopt").rglob("*"):
        if path.suffix == ".py" or path.name == "py.typed":
            assert found[str(path.relative_to(ROOT))] == path.read_bytes()
    data = {name: found[name] for name in found if name.startswith("metaopt/base/data/")}
    wanted = {
        f"metaopt/base/data/configs/{path.relative_to(ROOT / 'configs')}": path.read_bytes()
        for path in (ROOT / "configs").rglob("*.yaml")
    }
    wanted |= {
        f"metaopt/base/data/pretrained/{path.name}": path.read_bytes()
        for path in PRETRAINED.glob("*.safetensors")
        if path.stem not in shipped.LARGE
    }
    assert data == wanted
    folders = {name.split("/")[0] for name in found}
    assert folders == {"metaopt", f"metaopt_symmetry-{metaopt.__version__}.dist-info"}


def test_a_wheel_says_what_it_is(wheel: Path) -> None:
    found = content(wheel)
    folder = f"metaopt_symmetry-{metaopt.__version__}.dist-info"
    metadata = message_from_bytes(found[f"{folder}/METADATA"])
    assert metadata["Name"] == "metaopt-symmetry"
    assert metadata["Version"] == metaopt.__version__
    assert metadata["License-Expression"] == "MIT"
    assert f"{folder}/licenses/LICENSE" in found
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert b"metaopt = metaopt.__main__:run" in found[f"{folder}/entry_points.txt"]


def test_a_source_distribution_builds_the_same_wheel(source: Path, wheel: Path) -> None:
    sdist = build("sdist", source, source.parent / "sdist")
    assert sdist.stat().st_size < LARGEST
    with tarfile.open(sdist) as archive:
        archive.extractall(source.parent / "unpacked", filter="data")
    (unpacked,) = (source.parent / "unpacked").iterdir()
    again = content(build("wheel", unpacked, source.parent / "again"))
    assert again == content(wheel)

"""What ``pyproject.toml`` cannot say: configurations and learned optimizers go into the wheel.

They lie beside the package, where a user of the repository looks for them; the wheel has them in
``metaopt/base/data/``, where ``metaopt.base.shipped`` finds them.
"""

from pathlib import Path
from shutil import copyfile

from setuptools import setup
from setuptools.command.build_py import build_py

DATA = {"configs": "configs", "checkpoints/pretrained": "pretrained"}
# Of 9 to 19 MB each; without them a wheel has 1 MB.
LARGE = "lstm_*.safetensors"


class BuildWithData(build_py):
    """``build_py`` that copies the data too; an editable installation reads them where they are."""

    def run(self) -> None:
        """Copy the package, then its data."""
        super().run()
        if self.editable_mode:
            return
        for source, place in DATA.items():
            for path in sorted(Path(source).rglob("*.*")):
                if path.suffix not in (".yaml", ".safetensors") or path.match(LARGE):
                    continue
                target = Path(self.build_lib, "metaopt/base/data", place, path.relative_to(source))
                target.parent.mkdir(parents=True, exist_ok=True)
                copyfile(path, target)


setup(cmdclass={"build_py": BuildWithData})

"""The API reference, generated from the docstrings by pdoc.

pip install -c constraints.txt -e '.[docs]' && python docs/api.py [--out build/api]
"""

from __future__ import annotations

import argparse
import pkgutil
from pathlib import Path

import pdoc
import pdoc.render

import metaopt


def modules() -> list[str]:
    """All of the package's that people may import; private ones begin with an underscore."""
    found = pkgutil.walk_packages(metaopt.__path__, f"{metaopt.__name__}.")
    public = (module.name for module in found if "._" not in module.name)
    return [metaopt.__name__, *public]


def main() -> None:
    """Render every module, and a page to search them."""
    parser = argparse.ArgumentParser(description="Generate the API reference.")
    parser.add_argument("--out", type=Path, default=Path("build/api"), metavar="DIR")
    arguments = parser.parse_args()
    pdoc.render.configure(docformat="google", math=True)
    pdoc.pdoc(*modules(), output_directory=arguments.out)
    print(f"written to {arguments.out / 'index.html'}")


if __name__ == "__main__":
    main()

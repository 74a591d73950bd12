"""Make a virtual environment for npstream, and one for each package that it is compared with.

python benchmarks/peers/environments.py --directory DIRECTORY [--only NAME ...]

An environment that exists is left as it is. Each one takes 0.2 to 1.5 GB, and none is used in CI.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]

TORCH = ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]
"""Options of pip for builds of torch without CUDA, which are much smaller."""

REQUIREMENTS = {
    "npstream": [str(ROOT)],
    "streaming": [*TORCH, "torch", "mosaicml-streaming"],
    "litdata": [*TORCH, "torch", "litdata", "pyarrow"],
    "webdataset": ["webdataset"],
    "grain": ["grain", "array_record"],
    "datasets": ["datasets"],
    "lance": ["pylance", "pyarrow"],
    "zarr": ["zarr>=3"],
}
"""What pip installs in each environment. The table names the versions."""


def interpreter(environment: Path) -> Path:
    """Return the Python of a virtual environment."""
    return environment / "bin" / "python"


def make_environment(name: str, directory: Path) -> None:
    """Make an environment, unless it exists."""
    path = directory / name
    if path.exists():
        print(f"{name}: {path} exists")
        return
    partial = path.with_name(f"{name}.partial")
    venv.create(partial, with_pip=True, clear=True)
    command = [interpreter(partial), "-m", "pip", "install", "--quiet", *REQUIREMENTS[name]]
    subprocess.run(command, check=True)
    partial.rename(path)
    print(f"{name}: made {path}")


def main() -> None:
    """Make the environments that are named, or all."""
    parser = argparse.ArgumentParser(description="Make the environments of the comparison.")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=REQUIREMENTS, default=list(REQUIREMENTS))
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        make_environment(name, options.directory.absolute())


if __name__ == "__main__":
    sys.exit(main())

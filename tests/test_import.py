"""Importing npstream and opening a dataset load few modules, and take little time."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import npstream

MAX_SHARE_OF_NUMPY = 0.5
"""Limit of the CPU time of import and open, as a share of the time of NumPy's import."""

HEAVY = ["PIL", "awkward", "dask", "fsspec", "hypothesis", "numba", "pandas", "pyarrow", "torch"]
SLOW = [
    *("asyncio", "bz2", "concurrent.futures", "dataclasses", "difflib", "glob", "gzip"),
    *("hashlib", "importlib.metadata", "logging", "multiprocessing", "npstream._core.redaction"),
    *("npstream.orders.order", "queue", "tempfile", "urllib.parse"),
]
"""Modules that opening a local dataset does not load.

`dataclasses` is one of them because a dataclass takes much longer to define than a NamedTuple.
"""

ALL_MODULES = """
import importlib, pathlib, npstream
root = pathlib.Path(npstream.__file__).parent
for path in sorted(root.rglob("*.py")):
    names = path.relative_to(root.parent).with_suffix("").parts
    if names[1] not in ("torch", "streaming", "__main__"):
        importlib.import_module(".".join(names).removesuffix(".__init__"))
"""
"""Code that imports each module, except ``__main__`` and the packages that import torch."""


def run(code: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    ).stdout


@pytest.fixture
def data(tmp_path):
    npstream.write(tmp_path / "data", {"x": np.arange(3), "text": ["a", "b", "c"]})
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [("import npstream; npstream.open('.')", HEAVY + SLOW), (ALL_MODULES, HEAVY)],
    ids=["to open", "each module"],
)
def test_import_loads_no_heavy_packages(code, unwanted, data, monkeypatch):
    monkeypatch.chdir(data)
    # Modules that NumPy itself imports are allowed.
    loaded = run(
        f"import sys, numpy\nbefore = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - before))"
    ).split()
    assert "npstream" in loaded
    assert [name for name in unwanted if name in loaded] == []


def test_import_and_open_take_at_most_half_of_numpys_time(data, tmp_path, monkeypatch):
    monkeypatch.chdir(data)
    code = """
import time
start = time.process_time()
import numpy
middle = time.process_time()
import npstream
npstream.open(".")
print((time.process_time() - middle) / (middle - start))
"""
    # The least of several processes, as noise only adds. The first one compiles the modules.
    cache = {"PYTHONPYCACHEPREFIX": str(tmp_path / "pycache"), "PYTHONDONTWRITEBYTECODE": ""}
    assert min(float(run(code, **cache)) for _ in range(5)) <= MAX_SHARE_OF_NUMPY


def test_an_editable_install_adds_a_path():
    # Without this setting, pip installs an import finder, which Python asks after sys.path. In the
    # directory above a clone, `import npstream` would then find the clone as a namespace package.
    settings = configparser.ConfigParser()
    settings.read(Path(npstream.__file__).parents[1] / "setup.cfg")
    assert settings["options"]["package_dir"].split() == ["=", "."]


@pytest.mark.parametrize(
    ("name", "words"),
    [("load", "use npstream.open"), ("read", "use npstream.open"), ("save", "use npstream.write"),
     ("Loader", "npstream.torch.DataLoader"),
     ("interleave", "use npstream.mix"), ("concatenate", "use npstream.concat")],
)  # fmt: skip
def test_names_of_other_libraries_lead_to_those_of_npstream(name, words):
    with pytest.raises(AttributeError, match=words):
        getattr(npstream, name)
    assert not set(npstream._ALTERNATIVES) & set(npstream._EXPORTS)

"""``import npstream`` adds next to nothing to ``import numpy``."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

import npstream

BUDGET_MS = 60

HEAVY = ["PIL", "awkward", "dask", "fsspec", "hypothesis", "numba", "pandas", "pyarrow", "torch"]
SLOW = ["asyncio", "concurrent.futures", "importlib.metadata", "multiprocessing"]

ALL_MODULES = """
import importlib, pkgutil, npstream
for module in pkgutil.walk_packages(npstream.__path__, "npstream."):
    if module.name not in ("npstream.torch", "npstream.__main__"):
        importlib.import_module(module.name)
"""


def run(code: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    ).stdout


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [("import npstream; npstream.open", HEAVY + SLOW), (ALL_MODULES, HEAVY)],
    ids=["to open", "each module"],
)
def test_import_loads_nothing_heavy(code, unwanted):
    # NumPy's own imports are not ours to answer for.
    loaded = run(
        f"import sys, numpy\nbefore = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - before))"
    ).split()
    assert "npstream" in loaded
    assert [name for name in unwanted if name in loaded] == []


def test_import_stays_within_its_budget(tmp_path):
    code = """
import time, numpy
start = time.process_time()
import npstream
print(time.process_time() - start)
"""
    # The least of several processes, as noise only ever adds; the first compiles the modules.
    cache = {"PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    assert 1000 * min(float(run(code, **cache)) for _ in range(5)) <= BUDGET_MS


def test_an_editable_install_is_a_path():
    # A finder comes after sys.path, where the directory above a clone has a "npstream", too.
    settings = configparser.ConfigParser()
    settings.read(Path(npstream.__file__).parents[1] / "setup.cfg")
    assert settings["options"]["package_dir"].split() == ["=", "."]

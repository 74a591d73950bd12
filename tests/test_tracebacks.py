"""Tracebacks show the user's frames, and the first and last frame of npstream."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import npstream
from npstream.errors import StorageError

PACKAGE = str(Path(npstream.__file__).parent)


def frames(error: BaseException) -> list[str]:
    """Return the functions in a traceback, with an asterisk before those of npstream."""
    return [
        "*" * frame.filename.startswith(PACKAGE) + frame.name
        for frame in traceback.extract_tb(error.__traceback__)
    ]


@pytest.fixture
def damaged(tmp_path):
    """Return a dataset whose shard was deleted."""
    npstream.write(tmp_path / "d", {"x": np.arange(9), "text": list("abcdefghi")})
    (tmp_path / "d/shard.00000.mds").unlink()
    return npstream.open(tmp_path / "d")


READS = {
    "a sample": lambda ds: ds[0],
    "a batch": lambda ds: ds[:2].load(),
    "take": lambda ds: ds.take([1, 2]),
    "a column": lambda ds: ds["x"].load(),
    "a value": lambda ds: ds["text"][0],
    "an array": lambda ds: np.asarray(ds["x"]),
    "samples": lambda ds: list(ds),
    "batches": lambda ds: list(ds.iter(0, 1, batch_size=2)),
}


@pytest.mark.parametrize("name", READS)
def test_tracebacks_are_short_unless_full_ones_are_requested(name, damaged, monkeypatch):
    with pytest.raises(StorageError) as caught:
        READS[name](damaged)
    short = frames(caught.value)
    assert short[0] == "test_tracebacks_are_short_unless_full_ones_are_requested"
    assert sum(frame.startswith("*") for frame in short) == 2, short
    monkeypatch.setenv("NPSTREAM_TRACEBACK", "full")
    with pytest.raises(StorageError) as caught:
        READS[name](damaged)
    full = frames(caught.value)
    assert sum(frame.startswith("*") for frame in full) > 2
    assert full[-1] == short[-1]


def test_frames_of_a_users_function_are_kept(tmp_path):
    npstream.write(tmp_path / "d", {"x": np.arange(3)})

    def inner(sample):
        raise ZeroDivisionError

    def transform(sample):
        return inner(sample)

    ds = npstream.open(tmp_path / "d").with_transform(transform)
    for read in (lambda: ds[0], lambda: list(ds)):
        with pytest.raises(ZeroDivisionError) as caught:
            read()
        assert frames(caught.value)[-2:] == ["transform", "inner"]


def test_tracebacks_of_causes_are_short_and_pickling_keeps_the_message(damaged):
    with pytest.raises(StorageError) as caught:
        damaged[0]
    cause = caught.value.__cause__ or caught.value.__context__
    assert cause is not None
    assert 1 <= len(frames(cause)) <= 2
    unpickled = pickle.loads(pickle.dumps(caught.value))
    assert (type(unpickled), str(unpickled)) == (type(caught.value), str(caught.value))


def test_tracebacks_in_threads_are_short(damaged):
    def read(_):
        with pytest.raises(StorageError) as caught:
            damaged[0]
        return sum(frame.startswith("*") for frame in frames(caught.value))

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(read, range(40))) == {2}


def test_the_interpreter_prints_a_short_traceback(damaged, tmp_path):
    code = f"import npstream\nds = npstream.open({str(tmp_path / 'd')!r})\nds[0]\n"
    script = tmp_path / "script.py"
    script.write_text(code)
    process = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(PACKAGE).parent)},
    )  # fmt: skip
    assert "line 3, in <module>" in process.stderr
    assert 1 <= process.stderr.count(PACKAGE) <= 4
    assert "shard.00000.mds" in process.stderr.splitlines()[-1]
    assert process.returncode == 1


def test_a_notebook_shows_a_short_traceback(damaged, tmp_path):
    """IPython shows the user's line and a few of npstream's, also of the causes."""
    pytest.importorskip("IPython", reason="the test extra installs ipython")
    open_line = f"ds = npstream.open({str(tmp_path / 'd')!r})"
    code = (
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance(colors='NoColor')\n"
        "shell.run_cell('import npstream')\n"
        f"shell.run_cell({open_line!r})\n"
        "shell.run_cell('first = 1\\nrow = ds[0]')\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(PACKAGE).parent), "IPYTHONDIR": str(tmp_path)},
    )  # fmt: skip
    lines = (process.stdout + process.stderr).splitlines()
    assert any("----> 2 row = ds[0]" in line for line in lines)
    package_lines = [line for line in lines if line.startswith("File ") and PACKAGE in line]
    assert 1 <= len(package_lines) <= 4, package_lines
    assert "shard.00000.mds" in lines[-1]

"""What tracebacks show: the user's lines, where npstream was entered, and where it raised."""

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
    """Return the names of functions that a traceback shows; npstream's with an asterisk."""
    return [
        "*" * frame.filename.startswith(PACKAGE) + frame.name
        for frame in traceback.extract_tb(error.__traceback__)
    ]


@pytest.fixture
def damaged(tmp_path):
    """Return a dataset whose shard has gone."""
    npstream.write(tmp_path / "d", {"x": np.arange(9), "text": list("abcdefghi")})
    (tmp_path / "d/shard.00000.mds").unlink()
    return npstream.open(tmp_path / "d")


READS = {
    "a sample": lambda ds: ds[0],
    "a batch": lambda ds: ds[:2].load(),
    "taken": lambda ds: ds.take([1, 2]),
    "a column": lambda ds: ds["x"].load(),
    "a value": lambda ds: ds["text"][0],
    "an array": lambda ds: np.asarray(ds["x"]),
    "samples": lambda ds: list(ds),
    "batches": lambda ds: list(ds.iter(0, 1, batch_size=2)),
}


@pytest.mark.parametrize("name", READS)
def test_deep_errors_are_short(name, damaged, monkeypatch):
    with pytest.raises(StorageError) as caught:
        READS[name](damaged)
    short = frames(caught.value)
    assert short[0] == "test_deep_errors_are_short"
    assert 1 <= sum(frame.startswith("*") for frame in short) <= 3, short
    monkeypatch.setenv("NPSTREAM_TRACEBACK", "full")
    with pytest.raises(StorageError) as whole:
        READS[name](damaged)
    full = frames(whole.value)
    assert sum(frame.startswith("*") for frame in full) > 3
    assert full[-1] == short[-1]


def test_frames_of_users_stay(tmp_path):
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


def test_causes_are_short_and_pickles_whole(damaged):
    with pytest.raises(StorageError) as caught:
        damaged[0]
    cause = caught.value.__cause__ or caught.value.__context__
    assert cause is not None
    assert 1 <= len(frames(cause)) <= 2
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (type(caught.value), str(caught.value))


def test_threads(damaged):
    def read(_):
        with pytest.raises(StorageError) as caught:
            damaged[0]
        return sum(frame.startswith("*") for frame in frames(caught.value))

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(read, range(40))) <= {1, 2, 3}


def test_what_the_interpreter_prints(damaged, tmp_path):
    code = f"import npstream\nds = npstream.open({str(tmp_path / 'd')!r})\nds[0]\n"
    script = tmp_path / "script.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(PACKAGE).parent)},
    )  # fmt: skip
    assert "line 3, in <module>" in done.stderr
    assert 1 <= done.stderr.count(PACKAGE) <= 4
    assert "shard.00000.mds" in done.stderr.splitlines()[-1]
    assert done.returncode == 1


def test_what_a_notebook_shows(damaged, tmp_path):
    """IPython renders the user's line and a few of ours, of the causes, too."""
    pytest.importorskip("IPython", reason="the test extra installs ipython")
    opened = f"ds = npstream.open({str(tmp_path / 'd')!r})"
    code = (
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance(colors='NoColor')\n"
        "shell.run_cell('import npstream')\n"
        f"shell.run_cell({opened!r})\n"
        "shell.run_cell('first = 1\\nrow = ds[0]')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(PACKAGE).parent), "IPYTHONDIR": str(tmp_path)},
    )  # fmt: skip
    shown = done.stdout + done.stderr
    assert "----> 2 row = ds[0]" in shown
    ours = [line for line in shown.splitlines() if line.startswith("File ") and PACKAGE in line]
    assert 1 <= len(ours) <= 4, ours
    assert "shard.00000.mds" in shown.splitlines()[-1]

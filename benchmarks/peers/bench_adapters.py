"""The adapters of the packages that are installed here write and read all samples.

Packages that are not installed are measured only in the environments of the comparison.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from adapters import ADAPTERS
from compare import Package, format_value, table
from data import Data
from measure import measure_first, measure_samples, measure_write, read_epoch
from samples import Samples

INSTALLED = [name for name, adapter in ADAPTERS.items() if find_spec(adapter.module)]


# WebDataset leaves files open.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["T", "S"])
@pytest.mark.parametrize("name", INSTALLED)
def test_adapters_read_what_they_write(
    name: str, kind: str, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("measure.ROWS", 20)
    data.records_file()
    data.small_rows()
    samples = Samples(kind, data.directory, 300)
    adapter = ADAPTERS[name](samples, tmp_path / "dataset")
    figures = measure_write(adapter)
    # The tokens of a sample of T take 2,048 bytes; the label and the text of S take at least 24.
    assert figures["bytes"] > 300 * (2048 if kind == "T" else 24)
    read_epoch(adapter, shuffled=False)  # it raises if a sample is missing
    read_epoch(adapter, shuffled=True)
    assert measure_first(adapter)["now"] > 0
    if adapter.has_random_access:
        assert measure_samples(adapter)["seconds"] > 0
        sample, expected = adapter.reader()[7], samples[7]
        for column, value in expected.items():
            assert np.array_equal(sample[column], value), column


def test_an_incomplete_epoch_raises(data: Data, tmp_path: Path) -> None:
    data.records_file()
    ADAPTERS["npstream"](Samples("T", data.directory, 299), tmp_path / "dataset").write()
    short = ADAPTERS["npstream"](Samples("T", data.directory, 300), tmp_path / "dataset")
    with pytest.raises(AssertionError):
        read_epoch(short, shuffled=False)


def test_the_table_marks_the_best_of_each_column() -> None:
    packages = [
        Package("npstream", Path("python"), "1"),
        Package("webdataset", Path("python"), "2"),
    ]
    values = {"write": 1e-6, "bytes": 1 << 20, "order": 2e-6, "shuffled": 3e-6, "first": 0.5}
    for column, value in values.items():
        # The table shows medians: twice the value for npstream, and half of it for webdataset.
        for factor in (1, 3, 2):
            packages[0].add(column, value * factor)
            packages[1].add(column, value / factor)
    packages[0].add("samples", 4e-6)
    lines = table("T", 300, packages).splitlines()
    assert lines[0] == "## Tokens: 300 samples of `tokens` uint16[1024] and `id`"
    assert lines[4].startswith("| npstream 1 | 2 us | 2.0 MiB | 4 us | 6 us | **4 us** | 1000 ms |")
    assert lines[5].startswith("| webdataset 2 | **0.5 us** | **0.5 MiB** | **1 us** |")
    assert "none" in lines[5]
    assert format_value("write", 1.25e-5) == "12.5 us"

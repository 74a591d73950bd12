"""Kinds of sources: how they are recognized; reading ahead in a thread."""

from __future__ import annotations

import threading

import pytest
from started import started_threads

import npstream
from npstream.conversion.files import find_files
from npstream.conversion.source import (
    SOURCE_KINDS,
    SourceRequest,
    kind_class,
    read_in_thread,
    recognize_kind,
)


def test_every_kind_has_a_class():
    for name in SOURCE_KINDS:
        assert kind_class(name).kind == name
    with pytest.raises(ValueError, match=r"kind='excel': expected one of .*'parquet'"):
        kind_class("excel")


@pytest.mark.parametrize(
    ("files", "kind"),
    [(["a.parquet", "_SUCCESS", "README.md"], "parquet"), (["x.csv.gz"], "csv"),
     (["d/x.TSV"], "csv")],
)  # fmt: skip
def test_files_are_recognized_by_their_extensions(tmp_path, files, kind):
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert recognize_kind(find_files(tmp_path)).kind == kind


def test_a_dataset_is_recognized_by_its_index(tmp_path):
    npstream.write(tmp_path / "ds", {"x": [1]})
    assert recognize_kind(find_files(tmp_path / "ds")).kind == "mds"
    (tmp_path / "ds" / "index.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"no kind of data is known for files such as 'index\."):
        recognize_kind(find_files(tmp_path / "ds"))


def test_several_or_unknown_kinds_raise(tmp_path):
    (tmp_path / "a.csv").touch()
    (tmp_path / "b.parquet").touch()
    with pytest.raises(ValueError, match=r"1 file of 'parquet', 1 file of 'csv': choose"):
        recognize_kind(find_files(tmp_path))
    (tmp_path / "c.xyz").touch()
    with pytest.raises(ValueError, match=r"known for files such as 'c.xyz': give kind="):
        recognize_kind(find_files(tmp_path / "c.xyz"))


def test_options_of_another_kind_raise(tmp_path):
    (tmp_path / "a.csv").write_text("a\n1\n")
    files = find_files(tmp_path)
    with pytest.raises(TypeError, match="'csv' has no option 'sep'; its options: delimiter"):
        kind_class("csv")(files, SourceRequest(options={"sep": ";"}))


def test_a_thread_reads_in_order_and_stops_when_the_iterator_is_closed():
    closed = threading.Event()

    def numbers():
        try:
            yield from range(1000)
        finally:
            closed.set()

    assert list(read_in_thread(range(100))) == list(range(100))
    iterator = read_in_thread(numbers())
    assert next(iterator) == 0
    iterator.close()
    assert closed.wait(60)
    assert not started_threads("npstream-source")


def test_an_exception_in_the_thread_is_raised_after_the_items_before_it():
    def failing():
        yield 1
        raise RuntimeError("broken")

    reader = read_in_thread(failing())
    assert next(reader) == 1
    with pytest.raises(RuntimeError, match="broken"):
        next(reader)

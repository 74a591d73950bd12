"""`convert`: its arguments, its plan, objects as sources, filters, maps and errors."""

from __future__ import annotations

import inspect
from importlib import import_module

import numpy as np
import pytest
from started import started_children

import npstream
from npstream.conversion import parquet
from npstream.conversion.files import find_files
from npstream.errors import ColumnError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

convert_module = import_module("npstream.conversion.convert")

TABLE = pa.table({"id": range(100), "text": [f"t{n}" for n in range(100)]})


@pytest.fixture
def source(tmp_path):
    (tmp_path / "in").mkdir()
    pq.write_table(TABLE.slice(0, 60), tmp_path / "in" / "1.parquet")
    pq.write_table(TABLE.slice(60), tmp_path / "in" / "2.parquet")
    return tmp_path / "in"


def next_id_twice(sample):
    return [{"n": int(sample["id"]) + 1}] * 2


@pytest.mark.parametrize("workers", [0, 2])
def test_map_gets_samples_and_workers_keep_their_order(source, tmp_path, workers):
    npstream.convert(source, tmp_path / "out", map=next_id_twice, where="id >= 50", workers=workers)
    assert npstream.open(tmp_path / "out")["n"].load().tolist() == list(
        np.repeat(np.arange(51, 101), 2)
    )


@pytest.mark.parametrize("where", [None, "id < 70"])
def test_map_gets_the_rows_of_all_tables_of_a_part(where, tmp_path):
    """A part is read as several tables: for example, one for each row group."""
    pq.write_table(TABLE, tmp_path / "a.parquet", row_group_size=30)
    lines = [f"{number},{'x' * 2000}\n" for number in range(2500)]  # more than CSV reads at once
    (tmp_path / "b.csv").write_text("id,text\n" + "".join(lines))
    for source, count in (("a.parquet", 100), ("b.csv", 2500)):
        target = tmp_path / f"{source}-out"
        npstream.convert(tmp_path / source, target, map=next_id_twice, where=where)
        numbers = npstream.open(target)["n"].load()[::2]
        np.testing.assert_array_equal(numbers, np.arange(count if where is None else 70) + 1)


def test_where_takes_a_function(source, tmp_path):
    npstream.convert(source, tmp_path / "out", where=lambda sample: sample["text"].endswith("7"))
    assert npstream.open(tmp_path / "out")["id"].load().tolist() == list(range(7, 100, 10))


def test_columns_are_chosen_renamed_and_typed(source, tmp_path):
    columns = {"body": None, "id": "uint8"}
    report = npstream.convert(source, tmp_path / "out", columns=columns, rename={"text": "body"})
    assert report.columns == {"body": "str", "id": "uint8"}
    assert npstream.open(tmp_path / "out").columns == ("body", "id")


def test_a_dry_run_counts_the_rows_of_columns():
    columns = {"a": np.arange(3), "b": ["x", "y", "z"]}
    assert npstream.convert(columns, "x", dry_run=True).samples == 3
    assert npstream.convert(columns, "x", dry_run=True, where="a > 0").samples == 2


def test_a_dry_run_does_not_use_up_an_iterator():
    samples = ({"a": k} for k in range(10))
    with pytest.raises(ValueError, match="would use up the iterator: give a list"):
        npstream.convert(samples, "x", dry_run=True)
    assert next(samples) == {"a": 0}


def test_a_dry_run_writes_nothing_and_says_what_would_be_written(source, tmp_path):
    plan = npstream.convert(source, tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    assert (plan.kind, plan.files, plan.samples) == ("parquet", 2, 100)
    assert plan.columns == {"id": "int64", "text": "str"}
    assert str(plan).splitlines()[1:] == ["  id    int64", "  text  str"]
    assert npstream.convert(source, "x", dry_run=True, where="id < 10").samples == 10
    assert npstream.convert(source, "x", dry_run=True, map=next_id_twice).columns == {"n": "int"}


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"kinds": "csv"}, TypeError, "unexpected keyword argument 'kinds'"),
        ({"columns": "id"}, TypeError, "'id' is a text: give a list of names"),
        ({"columns": ["id", "id"]}, ValueError, "has 'id' twice"),
        ({"columns": ["no"]}, ColumnError, "no column 'no'; columns: id, text"),
        ({"columns": {"id": "int99"}}, ValueError, "unknown encoding 'int99'"),
        ({"where": "no == 1"}, ColumnError, "no column 'no'"),
        ({"where": "id = 1"}, ValueError, "write == to compare"),
        ({"where": 5}, TypeError, "where= of type int"),
        ({"rename": {"no": "x"}}, ColumnError, "rename=: no column 'no'"),
        ({"rename": {"id": "text"}}, ValueError, "makes two columns of the name 'text'"),
        ({"rename": {"id": "x", "text": "x"}}, ValueError, "two columns get the same name"),
        ({"map": next_id_twice, "columns": ["n"]}, TypeError, "needs an encoding for each column"),
        ({"kind": "csvs"}, ValueError, "expected one of"),
        ({"reader_options": {"x": 1}}, TypeError, "no option 'x'"),
        ({"compression": "zip"}, ValueError, "zip"),
        ({"columns": {"id": "int32"}, "format": "jsonl"}, ValueError, "columns of text are str"),
    ],
)
def test_wrong_arguments_raise_before_anything_is_written(
    source, tmp_path, arguments, error, words
):
    with pytest.raises(error, match=words):
        npstream.convert(source, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_the_signature_has_each_argument_of_write_with_its_default():
    parameters = inspect.signature(npstream.convert).parameters
    write_parameters = dict(inspect.signature(npstream.write).parameters)
    kinds = [parameter.kind for parameter in parameters.values()]
    assert inspect.Parameter.VAR_KEYWORD not in kinds
    for name in ("path", "data"):
        del write_parameters[name]
    for name, parameter in write_parameters.items():
        assert parameters[name].default == parameter.default, name


def test_objects_are_sources_too(tmp_path):
    samples = [{"a": n, "b": str(n)} for n in range(200)]
    table = pa.Table.from_pylist(samples)
    arrays = {"a": np.arange(200), "b": [str(n) for n in range(200)]}
    sources = [samples, iter(samples), arrays, table, table.to_reader()]
    for number, each in enumerate(sources):
        out = tmp_path / f"out{number}"
        npstream.convert(
            each, out, rename={"a": "n"}, columns=["n"], where="n % 3 == 0 and b != '6'"
        )
        expected = [n for n in range(0, 200, 3) if n != 6]
        assert npstream.open(out)["n"].load().tolist() == expected
        assert npstream.open(out).columns == ("n",)


def test_data_frames_are_sources_too(tmp_path):
    pd = pytest.importorskip("pandas")
    pl = pytest.importorskip("polars")
    for number, library in enumerate((pd, pl)):
        frame = library.DataFrame({"a": [1, 2, 3], "b": ["x", "y", "z"]})
        npstream.convert(frame, tmp_path / f"o{number}", where="a > 1", columns=["b"])
        assert list(npstream.open(tmp_path / f"o{number}")["b"]) == ["y", "z"]


def test_all_formats_are_written(source, tmp_path):
    for format in ("jsonl", "csv", "tsv"):
        report = npstream.convert(source, tmp_path / format, format=format)
        assert report.columns == {"id": "int", "text": "str"}
        assert npstream.open(tmp_path / format)[99]["text"] == "t99"


def test_encodings_can_be_types_and_those_of_text(source, tmp_path):
    columns = {"id": np.uint8, "text": str}
    assert npstream.convert(source, tmp_path / "a", columns=columns).columns["id"] == "uint8"
    columns = {"id": "float", "text": None}
    report = npstream.convert(source, tmp_path / "b", columns=columns, format="jsonl")
    assert report.columns == {"id": "float", "text": "str"}


def test_workers_start_before_a_remote_source_is_opened(source, tmp_path, upload, monkeypatch):
    processes = []

    def find(*arguments):
        processes.append(len(started_children()))
        return find_files(*arguments)

    monkeypatch.setattr(convert_module, "find_files", find)
    url = upload(source)
    npstream.convert(url, tmp_path / "out", map=next_id_twice, workers=2)
    assert len(npstream.open(tmp_path / "out")) == 200
    npstream.convert(url, tmp_path / "out1", map=next_id_twice, workers=2, resume=True)
    npstream.convert(url, tmp_path / "out2", workers=2)
    assert len(npstream.open(tmp_path / "out2")) == 100
    assert processes == [2, 2, 0]  # without `map`, no process starts at all
    with pytest.raises(FileNotFoundError, match="no such file"):
        npstream.convert(f"{url}/none", tmp_path / "out3", map=next_id_twice, workers=2)
    assert not (tmp_path / "out3").exists()


def test_an_exception_of_where_is_raised_as_it_is(source, tmp_path):
    with pytest.raises(KeyError, match="nothing"):
        npstream.convert(source, tmp_path / "out", where=lambda sample: sample["nothing"])
    assert not (tmp_path / "out").exists()


def test_samples_are_rejected_with_their_numbers(tmp_path):
    table = pa.table({"x": [1, None, 3]})
    pq.write_table(table, tmp_path / "a.parquet")
    report = npstream.convert(tmp_path / "a.parquet", tmp_path / "out", on_error="skip")
    assert (report.samples, report.rejected) == (2, 1)


@pytest.mark.parametrize("options", [{}, {"map": dict}, {"map": dict, "workers": 2}])
def test_a_conversion_goes_on_after_its_last_whole_shard(tmp_path, monkeypatch, options):
    for number in range(4):
        table = TABLE.slice(number * 25, 25)
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=5)
    opened = []

    def batches(file, rows, names):
        opened.append(file.name)
        if fails and file.name == "3.parquet":
            raise OSError(5, "the disk is gone")
        yield from record_batches(file, rows, names)

    record_batches = parquet._record_batches
    monkeypatch.setattr(parquet, "_record_batches", batches)
    arguments = {"where": "id != 50", "shard_samples": 10, "resume": True, **options}
    fails = True
    with pytest.raises(OSError, match="the disk is gone"):
        npstream.convert(f"{tmp_path}/*.parquet", tmp_path / "out", **arguments)
    assert opened == [f"{number}.parquet" for number in range(4)]
    with pytest.raises(FileNotFoundError):
        npstream.open(tmp_path / "out")
    fails = False
    if not options:
        with pytest.raises(ValueError, match=r"where=: 'id != 50' then, 'id != 51' now"):
            npstream.convert(
                f"{tmp_path}/*.parquet", tmp_path / "out", **{**arguments, "where": "id != 51"}
            )
    opened.clear()
    report = npstream.convert(f"{tmp_path}/*.parquet", tmp_path / "out", **arguments)
    assert report.samples == 99
    # With workers, samples are stored later than they are read, so more files may be read again.
    if "workers" not in options:
        assert opened == ["2.parquet", "3.parquet"]
    npstream.convert(
        f"{tmp_path}/*.parquet", tmp_path / "whole", where="id != 50", shard_samples=10
    )
    for path in (tmp_path / "whole").glob("*.mds"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_an_append_takes_the_encodings_of_the_text_format_that_the_dataset_has(tmp_path):
    columns = {"x": "float", "n": "int"}
    npstream.write(tmp_path / "out", [{"x": 1.5, "n": 1}], format="jsonl")
    (tmp_path / "in.csv").write_text("x,n\n2.5,7\n")
    npstream.convert(tmp_path / "in.csv", tmp_path / "out", mode="a", columns=columns)
    assert npstream.open(tmp_path / "out")[1] == {"x": 2.5, "n": 7}
    with pytest.raises(ValueError, match="unknown encoding 'float'"):
        npstream.convert(tmp_path / "in.csv", tmp_path / "new", columns=columns)


@pytest.mark.parametrize("where", ["n != 5", lambda sample: sample["n"] != 5])
def test_where_keeps_the_values_of_an_iterator_that_yields_the_same_objects_again(tmp_path, where):
    def source():
        sample = {"x": np.zeros(3, np.int64)}
        for number in range(200):
            sample["x"][:] = sample["n"] = number
            yield sample

    npstream.convert(source(), tmp_path / "out", where=where)
    expected = [number for number in range(200) if number != 5]
    ds = npstream.open(tmp_path / "out")
    assert ds["n"].load().tolist() == expected
    assert [array[0] for array in ds["x"]] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"compression": "zst"}, "unknown compression 'zst'"),
        ({"shard_size": "12 XB"}, "12 XB"),
        ({"shard_samples": 0}, "shard_samples=0"),
        ({"hashes": ["sha0"]}, "sha0"),
        ({"format": "josnl"}, "did you mean 'jsonl'"),
        ({"newline": "\n"}, "need a text format"),
        ({"mode": "r"}, "mode='r'"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"workers": -1}, "workers=-1"),
    ],
    ids=str,
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_arguments_are_checked_before_anything_is_read(arguments, message, dry_run, tmp_path):
    """The source does not exist, which a read would notice."""
    with pytest.raises(ValueError, match=message):
        npstream.convert(tmp_path / "none.csv", tmp_path / "out", dry_run=dry_run, **arguments)
    if not dry_run:
        samples = iter([{"x": 1}])
        with pytest.raises(ValueError, match=message):
            npstream.write(tmp_path / "out", samples, **arguments)
        assert next(samples) == {"x": 1}
    assert list(tmp_path.iterdir()) == []


OBJECTS = {
    "samples": [{"name": "a", "age": 1}, {"name": "b", "age": 2}],
    "columns": {"name": ["a", "b"], "age": [1, 2]},
    "a table": pa.table({"name": ["a", "b"], "age": [1, 2]}),
    "tables": [pa.table({"name": ["a", "b"], "age": [1, 2]})],
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_objects_without_a_column_raise_unless_it_is_filled(kind, tmp_path):
    for arguments in (
        {"columns": ["nama"]},
        {"columns": {"nama": "str"}},
        {"columns": ["nama"], "dry_run": True},
        {"where": "nama == 'a'"},
    ):
        with pytest.raises(ColumnError, match=r"no column 'nama'; did you mean 'name'\?"):
            npstream.convert(OBJECTS[kind], tmp_path / "out", **arguments)
    report = npstream.convert(OBJECTS[kind], tmp_path / "out", columns=["age"], mode="w")
    assert list(report.columns) == ["age"]
    report = npstream.convert(
        OBJECTS[kind], tmp_path / "out", columns=["age", "lang"], fill={"lang": "en"}, mode="w"
    )
    assert list(report.columns) == ["age", "lang"]
    assert list(npstream.open(tmp_path / "out")["lang"]) == ["en", "en"]

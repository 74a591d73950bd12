"""Inputs made of parts: opened one at a time, written as one dataset, and read from a position."""

from __future__ import annotations

import gc
import json
import weakref

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import npstream
from npstream.writing.inputs.parts import Part, PartedInput

COUNTS = (3, 0, 4, 1)


def sample(number):
    return {"x": number, "text": "t" * (number % 3)}


def samples(start, stop):
    return [sample(number) for number in range(start, stop)]


def frame(start, stop):
    numbers = range(start, stop)
    return pd.DataFrame({"x": [*numbers], "text": ["t" * (k % 3) for k in numbers]})


def reader(start, stop):
    """Return a stream of tables of two rows."""
    table = pa.Table.from_pandas(frame(start, stop), preserve_index=False)
    schema = pa.schema([("x", pa.int64()), ("text", pa.string())])
    return pa.RecordBatchReader.from_batches(schema, table.cast(schema).to_batches(2))


def columns(start, stop):
    numbers = np.arange(start, stop)
    return {"x": numbers, "text": ["t" * (k % 3) for k in numbers.tolist()]}


def generator(start, stop):
    yield from samples(start, stop)


def tuples(start, stop):
    return ((row["x"], row["text"]) for row in samples(start, stop))


KINDS = [samples, generator, frame, reader, columns]


def make_parts(content, counts=COUNTS, opened=None, has_counts=False):
    """Return parts with `counts` samples; add the names of opened parts to the list `opened`."""

    def part(number):
        start = sum(counts[:number])

        def open_part():
            if opened is not None:
                opened.append(f"part {number}")
            return content(start, start + counts[number])

        return Part(f"part {number}", open_part, counts[number] if has_counts else None)

    return PartedInput(map(part, range(len(counts))))


def content_of(path):
    with npstream.open(path) as ds:
        return list(zip(ds["x"].load().tolist(), ds["text"], strict=True))


EXPECTED = [(number, "t" * (number % 3)) for number in range(sum(COUNTS))]


@pytest.mark.parametrize("content", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("has_counts", [False, True])
def test_parts_are_written_as_one(content, workers, has_counts, tmp_path):
    parts = make_parts(content, has_counts=has_counts)
    report = npstream.write(tmp_path / "ds", parts, workers=workers)
    assert report.samples == sum(COUNTS)
    assert content_of(tmp_path / "ds") == EXPECTED


@pytest.mark.parametrize("content", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("workers", [0, 2])
def test_map_takes_each_sample_of_the_parts(content, workers, tmp_path):
    npstream.write(
        tmp_path / "ds",
        make_parts(content),
        workers=workers,
        map=lambda s: s if s["x"] % 2 else None,
    )
    assert content_of(tmp_path / "ds") == EXPECTED[1::2]


@pytest.mark.parametrize("workers", [0, 1])
def test_map_takes_any_items(workers, tmp_path):
    parts = [Part("a", lambda: list("ab")), Part("none", list), Part("b", lambda: ["c"])]
    npstream.write(
        tmp_path / "ds", PartedInput(parts), map=lambda c: {"letter": c}, workers=workers
    )
    with npstream.open(tmp_path / "ds") as ds:
        assert list(ds["letter"]) == ["a", "b", "c"]


def test_columns_name_the_values_of_tuples(tmp_path):
    npstream.write(tmp_path / "ds", make_parts(tuples), columns={"x": "int64", "text": "str"})
    assert content_of(tmp_path / "ds") == EXPECTED


def test_parts_of_a_dataset_are_copied_and_filled(tmp_path):
    npstream.write(tmp_path / "a", samples(0, 2))
    with npstream.open(tmp_path / "a") as ds:
        parts = PartedInput([Part("0", lambda: ds), Part("1", lambda: ds[::-1])])
        npstream.write(tmp_path / "b", parts)
        npstream.write(tmp_path / "c", parts, fill={"lang": "en"})
    assert content_of(tmp_path / "b") == content_of(tmp_path / "c")
    assert [x for x, _ in content_of(tmp_path / "b")] == [0, 1, 1, 0]
    with npstream.open(tmp_path / "c") as ds:
        assert list(ds["lang"]) == ["en"] * 4


class Rows:
    """Samples that a weak reference can follow."""

    def __init__(self, start, stop):
        self._rows = iter(samples(start, stop))

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._rows)


@pytest.mark.parametrize("content", [Rows, frame, reader], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("map_sample", [None, lambda sample: sample])
def test_a_part_is_opened_after_the_former_one_was_dropped(content, map_sample, tmp_path):
    former = []

    def open_part(number):
        gc.collect()
        assert [reference() for reference in former] == [None] * len(former)
        opened = content(number, number + 2)
        former.append(weakref.ref(opened))
        return opened

    parts = [Part(str(k), lambda k=k: open_part(k)) for k in (0, 2, 4)]
    npstream.write(tmp_path / "ds", PartedInput(parts), map=map_sample)
    assert len(former) == 3


def test_a_part_is_opened_when_its_first_sample_is_needed(tmp_path):
    events = []
    parts = make_parts(samples, (2, 2), opened=events)
    npstream.write(tmp_path / "ds", parts, map=lambda sample: events.append(sample["x"]) or sample)
    assert events == ["part 0", 0, 1, "part 1", 2, 3]


@pytest.mark.parametrize("content", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("number", range(sum(COUNTS)))
def test_an_input_goes_on_at_a_position(content, number, tmp_path):
    whole = make_parts(content)
    npstream.write(tmp_path / "whole", whole)
    whole.seek(("part 0", 0))
    stream = whole.read()
    rows = list(stream.tables) if hasattr(stream, "tables") else list(stream)
    assert rows
    name, offset = json.loads(json.dumps(whole.position(number)))

    opened = []
    later_parts = make_parts(content, opened=opened)
    later_parts.seek((name, offset), number)
    npstream.write(tmp_path / "later", later_parts)
    assert content_of(tmp_path / "later") == EXPECTED[number:]
    assert opened == [f"part {k}" for k in range(int(name[-1]), len(COUNTS))]
    assert later_parts.position(sum(COUNTS) - 1) == ("part 3", 0)


def test_positions_of_earlier_samples_are_dropped():
    parts = make_parts(samples)
    with pytest.raises(ValueError, match="sample 0 was not read"):
        parts.position(0)
    assert list(parts.read()) == samples(0, sum(COUNTS))
    assert parts.position(2) == ("part 0", 2)
    assert parts.position(3) == ("part 2", 0)
    assert parts.position(3) == ("part 2", 0)
    with pytest.raises(ValueError, match="sample 2 was not read, or its position was dropped"):
        parts.position(2)
    with pytest.raises(ValueError, match="sample 8 was not read"):
        parts.position(8)


def test_a_position_at_the_end_of_a_part():
    parts = make_parts(samples)
    parts.seek(("part 0", 3), 3)
    assert list(parts.read()) == samples(3, sum(COUNTS))
    parts = make_parts(frame)
    parts.seek(("part 3", 1), 8)
    assert list(parts.read(["x"]).tables) == []


def test_names_and_counts_are_checked(tmp_path):
    with pytest.raises(ValueError, match="two parts of the input have the name 'a'"):
        PartedInput([Part("a", list), Part("b", list), Part("a", list)])
    parts = make_parts(samples, has_counts=True)
    assert parts.samples == sum(COUNTS)
    assert make_parts(samples).samples is None
    with pytest.raises(ValueError, match="no part 'x'; its 4 parts begin with"):
        parts.seek(("x", 0))
    parts = PartedInput([Part("a", lambda: samples(0, 3), 4)])
    with pytest.raises(ValueError, match="part 'a' of the input has 3 samples; it should have 4"):
        npstream.write(tmp_path / "ds", parts)
    assert not (tmp_path / "ds").exists()


def test_inputs_without_samples(tmp_path):
    for parts in (PartedInput([]), make_parts(samples, (0, 0)), make_parts(generator, (0,))):
        with pytest.raises(ValueError, match="no samples and no columns="):
            npstream.write(tmp_path / "ds", parts)
    report = npstream.write(tmp_path / "ds", make_parts(samples, (0, 0)), columns={"x": "int64"})
    assert (report.samples, report.columns) == (0, {"x": "int64"})


def test_tables_and_samples_do_not_mix(tmp_path):
    parts = [Part("a", lambda: samples(0, 2)), Part("b", lambda: frame(2, 4))]
    with pytest.raises(TypeError, match="part 'b' of the input has tables, and the parts before"):
        npstream.write(tmp_path / "ds", PartedInput(parts))
    with pytest.raises(TypeError, match="part 'a' of the input has samples"):
        npstream.write(tmp_path / "ds", PartedInput(parts[::-1]))
    assert not (tmp_path / "ds").exists()


def failing(start, stop):
    yield from samples(start, stop)
    raise RuntimeError("the disk is gone")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_exception_names_the_part_and_the_sample(workers, tmp_path):
    parts = [Part("a", lambda: samples(0, 2)), Part("b", lambda: failing(2, 3))]
    with pytest.raises(RuntimeError, match="the disk is gone") as caught:
        npstream.write(tmp_path / "ds", PartedInput(parts), workers=workers)
    assert "raised by part 'b' of the input, instead of sample 3" in caught.value.__notes__

    def broken():
        raise FileNotFoundError("part b")

    parts = [Part("a", lambda: samples(0, 2)), Part("b", broken)]
    with pytest.raises(FileNotFoundError) as caught:
        npstream.write(tmp_path / "ds", PartedInput(parts), workers=workers)
    assert "in part 'b' of the input, before sample 2" in caught.value.__notes__
    assert not (tmp_path / "ds").exists()


@pytest.mark.parametrize("content", [samples, frame], ids=lambda kind: kind.__name__)
def test_errors_count_the_samples_of_all_parts(content, tmp_path):
    parts = [
        Part("a", lambda: content(0, 3)),
        Part("b", lambda: pd.DataFrame({"x": [3, None], "text": ["", ""]}))
        if content is frame
        else Part("b", lambda: [sample(3), {"x": None, "text": ""}]),
    ]
    with pytest.raises((TypeError, ValueError), match="sample 4: column 'x'"):
        npstream.write(tmp_path / "ds", PartedInput(parts), columns={"x": "int64", "text": "str"})

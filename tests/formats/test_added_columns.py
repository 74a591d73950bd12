"""The list of added columns round-trips, and a damaged list raises."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

import npstream
from npstream.errors import FormatError
from npstream.formats.added_columns import (
    ColumnGroup,
    GroupPart,
    base_version,
    format_groups,
    parse_groups,
    shards_digest,
)


@pytest.fixture
def index(tmp_path):
    npstream.write(tmp_path / "data", {"x": np.arange(100)}, shard_samples=30, hashes=["sha1"])
    return npstream.open(tmp_path / "data")._source.index


@pytest.fixture
def groups(index):
    base = base_version(index)
    first = ColumnGroup(("a", "b"), (GroupPart("columns/1", 100),), base)
    parts = (GroupPart("columns/2", 60), GroupPart("columns/3", 40))
    return first, ColumnGroup(("c",), parts, base, "columns/2-fill", ("c",))


def test_groups_round_trip(groups):
    assert parse_groups(format_groups(groups), "here") == groups
    assert groups[1].samples == 100
    assert groups[1].paths == {"columns/2", "columns/3", "columns/2-fill"}


def test_a_group_applies_to_its_version_and_to_those_that_begin_with_it(index, groups, tmp_path):
    base = groups[0].base
    assert groups[0].applies_to(index)
    x = np.arange(100)
    for name, rows, applies in [
        ("longer", [*x, *x], False),  # the last shard of the base has more samples
        ("same", x, True),
        ("other", x[::-1], False),
        ("shorter", x[:90], False),
    ]:
        npstream.write(tmp_path / name, {"x": np.array(rows)}, shard_samples=30, hashes=["sha1"])
        other = npstream.open(tmp_path / name)._source.index
        assert groups[0].applies_to(other) == applies
    # The shards of the first 90 rows are the first shards of the index.
    npstream.write(tmp_path / "90", {"x": x[:90]}, shard_samples=30, hashes=["sha1"])
    base_90 = base_version(npstream.open(tmp_path / "90")._source.index)
    assert ColumnGroup(("a",), groups[0].parts, base_90).applies_to(index)
    assert shards_digest(index, 3) == base_90.digest != base.digest


DAMAGES = [
    (("groups",), None),
    (("groups", 0), []),
    (("groups", 0, "columns"), []),
    (("groups", 0, "columns"), ["a", "a"]),
    (("groups", 0, "columns", 0), 1),
    (("groups", 0, "parts"), []),
    (("groups", 0, "parts", 0, "path"), "../other"),
    (("groups", 0, "parts", 0, "path"), "/columns/1"),
    (("groups", 0, "parts", 0, "path"), "columns/../../x"),
    (("groups", 0, "parts", 0, "path"), "elsewhere/1"),
    (("groups", 0, "parts", 0, "samples"), -1),
    (("groups", 0, "parts", 0, "samples"), 1.5),
    (("groups", 0, "parts", 0, "samples"), True),
    (("groups", 0, "parts", 0, "samples"), 1 << 60),
    (("groups", 0, "dataset"), "x"),
    (("groups", 0, "dataset", "shards"), "3"),
    (("groups", 1, "fill", "path"), "s3://bucket/x"),
    (("version",), 2),
]


@pytest.mark.parametrize(("place", "value"), DAMAGES, ids=str)
def test_a_damaged_list_raises(place, value, groups):
    document = json.loads(format_groups(groups))
    item = document
    for key in place[:-1]:
        item = item[key]
    item[place[-1]] = copy.copy(value)
    with pytest.raises(FormatError, match=r"^here: "):
        parse_groups(json.dumps(document).encode(), "here")


@pytest.mark.parametrize("key", ["columns", "parts", "dataset"])
def test_a_missing_key_is_named(key, groups):
    document = json.loads(format_groups(groups))
    del document["groups"][0][key]
    with pytest.raises(FormatError, match=f"'{key}' is missing"):
        parse_groups(json.dumps(document).encode(), "here")


def test_a_truncated_list_raises(groups):
    text = format_groups(groups)
    for stop in range(0, len(text), 37):
        with pytest.raises(FormatError):
            parse_groups(text[:stop], "here")

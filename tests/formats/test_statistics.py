"""Statistics and sketches agree with NumPy, and merged parts with the whole."""

from __future__ import annotations

import collections
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import npstream
from npstream.formats import chunks, collector, sketches
from npstream.formats import statistics as statistics_module
from npstream.formats.encodings import encodings
from npstream.formats.sidecar.sidecar import Sidecar
from npstream.formats.sketches import (
    CAPACITY,
    COUNTERS,
    FrequentValues,
    QuantileSketch,
    largest_runs,
    sort_numbers,
)
from npstream.formats.statistics import (
    ColumnStatistics,
    add_elements,
    add_scalars,
    add_values,
    decode_statistics,
    encode_statistics,
)
from npstream.storage.local import open_store


def read(path):
    return Sidecar(open_store(path)).statistics()


def rank_errors(sketch, values):
    """Return the differences of the sketch's ranks from the true ones, for each kept value."""
    kept_values, ranks = sketch.values_and_ranks()
    true_ranks = np.searchsorted(np.sort(values), kept_values, side="right")
    # If a value is kept several times, compare only its last, highest rank.
    is_last = np.append(kept_values[1:] != kept_values[:-1], True)[: len(kept_values)]
    return np.abs(ranks - true_ranks)[is_last]


# Sorting


SORTED_DTYPES = ["f4", "f8", "i4", "i8", "u4", "u8", ">f4", ">i8", "f2", "i2", "u1", "m8[s]"]


def numbers_of(dtype):
    """Return 10,000 numbers with random bits, without NaN and NaT, with the extremes."""
    dtype = np.dtype(dtype)
    numbers = np.frombuffer(np.random.default_rng(0).bytes(10_000 * dtype.itemsize), dtype).copy()
    if dtype.kind == "f":
        numbers[:3] = -np.inf, np.inf, 0
    elif dtype.kind in "iu":
        numbers[:2] = np.iinfo(dtype).min, np.iinfo(dtype).max
    return numbers[numbers == numbers]


@pytest.mark.parametrize("dtype", SORTED_DTYPES)
@pytest.mark.parametrize("method", ["numpy", "kernel"])
def test_numbers_are_sorted(monkeypatch, dtype, method):
    monkeypatch.setattr(sketches, "_MIN_RADIX_SORT", 0 if method == "kernel" else 1 << 30)
    monkeypatch.setattr(sketches, "_MAX_NUMPY_SORTED", -1)
    numbers = numbers_of(dtype)
    # The second one has equal digits, and the third one many equal numbers.
    for values in (numbers, numbers[:1].repeat(2000), numbers[:8].repeat(900), numbers[5:2:-1]):
        values = np.random.default_rng(1).permutation(values)
        before = values.copy()
        result = sort_numbers(values)
        assert np.array_equal(result, np.sort(before))
        assert result.dtype.kind == before.dtype.kind
        assert np.array_equal(values, before)


def test_sorted_numbers_are_copied_only_if_a_sketch_would_keep_them():
    long, short = np.arange(CAPACITY + 1), np.arange(CAPACITY)
    assert sort_numbers(long) is long
    assert not np.shares_memory(sort_numbers(short), short)


@given(st.lists(st.integers(0, 200), max_size=2000), st.integers(1, 9))
def test_largest_runs_are_the_most_frequent_numbers(numbers, repeats):
    values = np.sort(np.repeat(np.array(numbers, np.int64), repeats))
    begins, counts, cut = largest_runs(values)
    true_counts = sorted(collections.Counter(values.tolist()).items())
    largest = sorted((count for _, count in true_counts), reverse=True)
    assert cut == (largest[COUNTERS] if len(largest) > COUNTERS else 0)
    want = [(value, count - cut) for value, count in true_counts if count > cut]
    assert list(zip(values[begins].tolist(), counts.tolist(), strict=True)) == want


# Sketches


@pytest.mark.parametrize("order", ["sorted", "reversed", "shuffled", "equal", "two"])
@pytest.mark.parametrize("count", [0, 1, CAPACITY, CAPACITY + 1, 10_007, 200_000])
@pytest.mark.parametrize("block", [1000, 65_536])
def test_ranks_are_within_the_bound(order, count, block):
    values = np.arange(count)
    values = {
        "sorted": values,
        "reversed": values[::-1],
        "shuffled": np.random.default_rng(0).permutation(count),
        "equal": np.zeros(count, np.int64),
        "two": values % 2,
    }[order]
    sketch = QuantileSketch()
    for start in range(0, count, block):
        sketch.add(np.sort(values[start : start + block]))
    assert sketch.weight == count
    assert (rank_errors(sketch, values) <= sketch.error).all()
    assert sketch.error <= 0.02 * count
    assert sum(map(len, sketch.levels)) <= CAPACITY * len(sketch.levels)


@given(
    st.lists(hnp.arrays(np.int64, st.integers(0, 3000), elements=st.integers(-99, 99)), max_size=9)
)
def test_merged_sketches_keep_the_bound(parts):
    whole = QuantileSketch()
    for part in parts:
        sketch = QuantileSketch()
        sketch.add(np.sort(part))
        whole.merge(sketch)
    values = np.concatenate([np.zeros(0, np.int64), *parts])
    assert whole.weight == len(values)
    assert (rank_errors(whole, values) <= whole.error).all()


@given(hnp.arrays(np.float64, st.integers(1, CAPACITY), elements=st.floats(-9, 9)))
def test_few_values_have_exact_quantiles(values):
    sketch = QuantileSketch()
    sketch.add(np.sort(values))
    probabilities = [0, 0.1, 0.25, 0.5, 0.9, 1]
    expected = np.quantile(values, probabilities, method="inverted_cdf")
    assert np.array_equal(sketch.quantiles(probabilities), expected)


def test_no_values_have_no_quantiles():
    with pytest.raises(ValueError, match="no values"):
        QuantileSketch().quantiles([0.5])


@given(st.lists(st.lists(st.integers(0, 300), max_size=400), max_size=8))
def test_frequent_values_are_within_the_bound(parts):
    whole = FrequentValues()
    for part in parts:
        one = FrequentValues()
        for value in part:
            one.merge(FrequentValues({value: 1}))
        whole.merge(one)
    true = collections.Counter(value for part in parts for value in part)
    total = sum(true.values())
    assert len(whole.counts) <= COUNTERS
    assert whole.error <= total / (COUNTERS + 1)
    for value, count in true.items():
        assert whole.counts.get(value, 0) <= count <= whole.counts.get(value, 0) + whole.error


# Numbers


def assert_exact(statistics, values):
    """Compare everything but the sketches with NumPy, for integers exactly."""
    numbers = [x for x in values.ravel().tolist() if x == x]
    assert statistics.elements == values.size
    assert statistics.missing == values.size - len(numbers)
    if not numbers:
        assert (statistics.minimum, statistics.maximum) == (None, None)
        return
    assert (statistics.minimum, statistics.maximum) == (min(numbers), max(numbers))
    if values.dtype.kind in "iub":
        assert statistics.total == sum(map(int, numbers))
        assert statistics.squares == sum(int(x) ** 2 for x in numbers)
        assert type(statistics.total) is int
    else:
        with np.errstate(all="ignore"):
            floats = np.array(numbers, np.float64)
            magnitude = np.abs(floats).sum()
            total, squares = floats.sum(), (floats**2).sum()
        if np.isfinite(magnitude):
            assert abs(statistics.total - total) <= 1e-12 * magnitude
        assert np.isclose(statistics.squares, squares, rtol=1e-12, equal_nan=True)


INTEGERS = [np.dtype(code) for code in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("count", [1, 7, 9000, 70_000])
@pytest.mark.parametrize("compiled", [True, False], ids=["kernel", "NumPy"])
@pytest.mark.parametrize("span", ["all", "small", "ends"])
def test_integers_are_exact(dtype, count, compiled, span, monkeypatch):
    monkeypatch.setattr(statistics_module, "_use_kernel", lambda kernel, count: compiled)
    limits, rng = np.iinfo(dtype), np.random.default_rng(count)
    low, high = (limits.min, limits.max) if span != "small" else (0, 100)
    values = rng.integers(low, high, count, dtype, endpoint=True)
    if span == "ends":
        values = rng.choice(np.array([limits.min, limits.max], dtype), count)
    for add in (add_scalars, lambda s, v: add_elements(s, v, 1)):
        statistics = ColumnStatistics(dtype.name)
        add(statistics, values)
        assert_exact(statistics, values)


@pytest.mark.parametrize("dtype", INTEGERS[:4], ids=str)
@pytest.mark.parametrize("compiled", [True, False], ids=["kernel", "NumPy"])
@pytest.mark.parametrize(
    "columns", [("x",), ("a", "x"), ("x", "z"), ("a", "odd", "x"), ("odd", "x")]
)
def test_arrays_of_small_integers_are_exact(dtype, compiled, columns, tmp_path, monkeypatch):
    """The kernel reads the arrays in place, within the samples, if they are aligned."""
    monkeypatch.setattr(statistics_module, "_use_kernel", lambda kernel, count: compiled)
    limits, rng = np.iinfo(dtype), np.random.default_rng(0)
    count = 3000
    data = {
        "a": rng.integers(0, 9, count),
        "odd": rng.integers(-99, 99, count, np.int8),
        "x": rng.integers(limits.min, limits.max, (count, 3, 5), dtype, endpoint=True),
        "z": rng.random((count, 2)),
    }
    npstream.write(tmp_path, {name: data[name] for name in columns}, shard_size="40KB")
    found = read(tmp_path)
    for name in columns:
        assert found[name].count == count
        assert_exact(found[name], data[name])
    assert found["x"].quantiles.weight > 0


@given(hnp.arrays(st.sampled_from(INTEGERS), st.integers(0, 50)))
def test_any_integers_are_exact(values):
    statistics = ColumnStatistics(values.dtype.name)
    add_scalars(statistics, values)
    assert_exact(statistics, values)
    if values.size:
        wide = values.astype(object)
        exact = math.sqrt(len(wide) * sum(x * x for x in wide) - sum(wide) ** 2) / len(wide)
        assert statistics.std() == exact


@given(hnp.arrays(st.sampled_from([np.dtype(c) for c in ("f2", "f4", "f8")]), st.integers(0, 80)))
def test_floats_are_those_of_numpy(values):
    statistics = ColumnStatistics(values.dtype.name)
    add_scalars(statistics, values)
    assert_exact(statistics, values)


def test_mean_and_deviation_are_those_of_numpy():
    values = np.random.default_rng(0).normal(5, 2, 100_000)
    statistics = ColumnStatistics("float64")
    for part in np.split(values, 10):
        add_scalars(statistics, part)
    assert np.isclose(statistics.mean(), values.mean())
    assert np.isclose(statistics.std(), values.std())
    assert math.isnan(ColumnStatistics().mean())
    assert math.isnan(ColumnStatistics().std())


@given(
    st.lists(
        hnp.arrays(np.float32, st.integers(0, 2000), elements=st.floats(-9, 9, width=32)),
        max_size=6,
    )
)
def test_merged_parts_are_the_whole(parts):
    values = np.concatenate([np.zeros(0, np.float32), *parts])
    merged = ColumnStatistics("float32")
    for part in parts:
        one = ColumnStatistics("float32")
        add_scalars(one, part)
        merged.merge(one)
    assert merged.count == len(values)
    assert_exact(merged, values)
    assert merged.examined == len(values)
    assert (rank_errors(merged.quantiles, values) <= merged.quantiles.error).all()
    true = collections.Counter(values.tolist())
    for value, true_count in true.items():
        count = merged.frequent.counts.get(value, 0)
        assert count <= true_count <= count + merged.frequent.error


@pytest.mark.parametrize("kind", ["scalars", "elements"])
def test_many_values_are_sampled(kind):
    """Sketches examine a part of the values. Ranks are then right within a few standard errors."""
    rng = np.random.default_rng(3)
    values = rng.integers(0, 1000, 1_000_000)
    statistics = ColumnStatistics("int64")
    if kind == "scalars":
        add_scalars(statistics, values)
    else:
        add_elements(statistics, values, 1000)
    assert_exact(statistics, values)
    limit = statistics_module.SCALARS if kind == "scalars" else statistics_module.ELEMENTS
    assert statistics.examined <= limit
    weight = statistics.quantiles.weight
    assert abs(weight - len(values)) <= len(values) // statistics.examined
    allowed = statistics.quantiles.error + 4 * len(values) / math.sqrt(statistics.examined)
    assert (rank_errors(statistics.quantiles, values) <= allowed).all()


# Text


@given(st.lists(st.binary(max_size=80), max_size=60), st.integers(0, 9))
def test_lengths_and_frequent_values_are_exact(values, offset):
    data = np.frombuffer(bytes(offset) + b"".join(values), np.uint8)
    nbytes = np.array([len(value) for value in values], np.int64)
    begins = offset + np.cumsum(nbytes) - nbytes
    statistics = ColumnStatistics()
    add_values(statistics, data, begins, nbytes)
    assert statistics.count == len(values)
    assert statistics.missing == values.count(b"")
    assert statistics.nbytes == nbytes.sum()
    bounds = (min(nbytes, default=None), max(nbytes, default=None))
    assert (statistics.shortest, statistics.longest) == bounds
    true = collections.Counter(v for v in values if len(v) <= statistics_module.LONGEST)
    assert statistics.frequent.counts == dict(true)


def test_texts_that_differ_in_few_bytes_have_different_hashes():
    values = [bytes([k]) * n for n in range(1, 60) for k in range(4)]
    values += [b"a" * n + b"\0" for n in range(1, 60)]
    data, nbytes = np.frombuffer(b"".join(values), np.uint8), np.array([*map(len, values)])
    hashes = statistics_module._hash_bodies(data, np.cumsum(nbytes) - nbytes, nbytes)
    assert len(set(hashes.tolist())) == len(values)


# Datasets


def assert_describes(found, values):
    assert_exact(found, values)
    assert found.count == len(values)


@pytest.mark.parametrize("how", ["arrays", "mixed", "rows"])
def test_every_column_of_a_dataset_has_statistics(how, tmp_path):
    rng, n = np.random.default_rng(0), 3000
    floats = rng.normal(size=n)
    floats[::7] = np.nan
    days = np.arange(n).astype("M8[D]")
    days[5] = "NaT"
    arrays = {
        **{"id": np.arange(n), "label": rng.integers(0, 5, n, np.int32), "x": floats, "day": days},
        **{"seen": rng.random(n) < 0.3, "row": rng.integers(0, 9, (n, 3), np.uint16)},
        **{"e": rng.normal(size=(n, 2, 2)).astype(np.float32), "z": rng.normal(size=n) + 1j},
    }
    data = dict(arrays)
    if how != "arrays":
        data["text"] = [f"kind {k % 3}" if k % 5 else "" for k in range(n)]
        data["ragged"] = [np.arange(k % 4 + 1, dtype=np.int16) for k in range(n)]
        data["j"] = [None if k % 2 else {"a": k} for k in range(n)]
    kinds = {"j": "json", "text": "str", "ragged": "ndarray:int16"}
    # A first write infers the columns of the arrays.
    report = npstream.write(tmp_path / "a", {k: v[:1] for k, v in arrays.items()})
    columns = report.columns | {k: v for k, v in kinds.items() if k in data}
    written_data = data
    if how == "rows":
        written_data = ({name: data[name][k] for name in data} for k in range(n))
    npstream.write(tmp_path / "b", written_data, columns=columns, shard_size=20_000)
    found = read(tmp_path / "b")
    assert set(found) == set(data)
    for name in ("id", "label", "x", "row", "e"):
        assert_describes(found[name], arrays[name])
    assert found["label"].frequent.counts == dict(collections.Counter(arrays["label"].tolist()))
    assert found["seen"].total == arrays["seen"].sum()
    assert (found["day"].missing, found["day"].minimum, found["day"].maximum) == (1, 0, n - 1)
    assert found["day"].dtype == "datetime64[D]"
    assert (found["z"].count, found["z"].elements) == (n, 0)
    if how == "arrays":
        return
    bodies = [text.encode() for text in data["text"]]
    assert found["text"].missing == bodies.count(b"")
    assert found["text"].frequent.counts == dict(collections.Counter(bodies))
    assert found["text"].nbytes == sum(map(len, bodies))
    assert_exact(found["ragged"], np.concatenate(data["ragged"]))
    assert found["ragged"].count == n
    assert found["j"].missing == n // 2


@pytest.mark.parametrize("long", [1, 200])
@pytest.mark.parametrize("loaded", [True, False])
def test_ragged_arrays_are_exact_with_and_without_a_kernel(long, loaded, tmp_path, monkeypatch):
    from npstream._core import spans

    monkeypatch.setattr(type(spans.copy_spans), "is_loaded", loaded)
    rows = [np.arange(k % 5 + 1, dtype=np.float32).repeat(long) for k in range(500)]
    npstream.write(tmp_path, [{"typed": r, "any": r} for r in rows], columns={
        "typed": "ndarray:float32", "any": "ndarray"})  # fmt: skip
    for statistics in read(tmp_path).values():
        assert_exact(statistics, np.concatenate(rows))
        assert (statistics.count, statistics.dtype) == (500, "float32")


@pytest.mark.parametrize("dtypes", ["ui", "uuiiuu", "uiuuuu", "iuu", "uuuuui"])
@pytest.mark.parametrize("in_one_chunk", [True, False])
def test_arrays_of_several_dtypes_have_lengths_only(dtypes, in_one_chunk, tmp_path, monkeypatch):
    if not in_one_chunk:
        monkeypatch.setattr(collector, "CHUNK_BYTES", 1)
    numbers = {"u": np.uint8, "i": np.int64}
    rows = [np.ones(3, numbers[dtype]) for dtype in dtypes]
    npstream.write(tmp_path, [{"x": row} for row in rows], columns={"x": "ndarray"})
    statistics = read(tmp_path)["x"]
    assert (statistics.count, statistics.elements, statistics.dtype) == (len(dtypes), 0, "")
    assert (statistics.minimum, statistics.total, statistics.examined) == (None, 0, 0)
    nbytes = [3 + row.nbytes for row in rows]  # each value has a head of 3 bytes
    assert (statistics.shortest, statistics.longest) == (min(nbytes), max(nbytes))
    assert statistics.nbytes == sum(nbytes)


def test_registered_encodings_have_statistics(tmp_path, monkeypatch):
    monkeypatch.setattr(encodings, "_ENCODINGS", dict(encodings._ENCODINGS))
    npstream.register_encoding("pair", bytes, tuple, size=2)
    npstream.register_encoding("many", bytes, tuple)
    data = [{"a": bytes([k % 3, 0]), "b": bytes(k % 4)} for k in range(60)]
    for columns in ({"a": "pair"}, {"a": "pair", "b": "many"}):
        npstream.write(tmp_path / str(len(columns)), data, columns=columns)
        found = read(tmp_path / str(len(columns)))
        assert found["a"].frequent.counts == {bytes([k, 0]): 20 for k in range(3)}
        assert (found["a"].count, found["a"].shortest, found["a"].longest) == (60, 2, 2)
    assert (found["b"].missing, found["b"].longest) == (15, 3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_floats_of_ml_dtypes_have_statistics(dtype, tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.array([0.5, -2, np.nan, 1], getattr(ml_dtypes, dtype))
    npstream.write(tmp_path, {"x": values, "y": values.reshape(4, 1)})
    for statistics in read(tmp_path).values():
        assert (statistics.dtype, statistics.missing) == (dtype, 1)
        assert (statistics.minimum, statistics.maximum, statistics.total) == (-2, 1, -0.5)


def test_statistics_of_columns_and_of_rows_are_equal(tmp_path):
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=50_000), "y": rng.integers(0, 99, (50_000, 20))}
    options = {"shard_size": "1MiB"}
    npstream.write(tmp_path / "one", data, **options)
    rows = ({"x": x, "y": y} for x, y in zip(*data.values(), strict=True))
    columns = {"x": "float64", "y": "ndarray:int64:20"}
    npstream.write(tmp_path / "two", rows, columns=columns, **options)
    one, two = (read(tmp_path / name) for name in ("one", "two"))
    assert encode_statistics(one) == encode_statistics(two)


def test_built_side_cars_have_the_same_statistics(tmp_path):
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=9000), "t": [f"{k % 7}" for k in range(9000)], "b": [True] * 9000}
    npstream.write(tmp_path, data, shard_size="40KiB")
    written = read(tmp_path)
    (tmp_path / "index.msgpack").unlink()
    npstream.build_index(tmp_path)
    assert encode_statistics(read(tmp_path)) == encode_statistics(written)
    assert npstream.verify_dataset(tmp_path).problems == ()


def test_scalars_of_several_chunks_are_buffered(tmp_path, monkeypatch):
    """The only column is the whole sample, so its values are a view of the chunk's memory."""
    for module_ in (collector, chunks):
        monkeypatch.setattr(module_, "CHUNK_BYTES", 5000)
    values = np.random.default_rng(0).integers(0, 1 << 60, 9000)
    npstream.write(tmp_path, {"x": values})
    for columns in (None, []):
        found = read(tmp_path)["x"]
        assert_exact(found, values)
        assert found.examined == 9000
        assert found.quantiles.error <= 9000 // 100
        (tmp_path / "index.msgpack").unlink()
        npstream.build_index(tmp_path, columns=columns)


def test_a_side_car_without_statistics_has_none(tmp_path):
    npstream.write(tmp_path, {"x": [1]})
    npstream.build_index(tmp_path, columns=[], hashes=False)
    assert read(tmp_path) == {}
    assert npstream.verify_dataset(tmp_path).problems == ()


def test_verification_finds_statistics_that_are_wrong(tmp_path, monkeypatch):
    def add_wrongly(statistics, values):
        add_scalars(statistics, values)
        statistics.total += 1

    monkeypatch.setattr(collector, "add_scalars", add_wrongly)
    npstream.write(tmp_path, {"x": np.arange(9), "y": np.zeros((9, 2))})
    monkeypatch.undo()
    (problem,) = npstream.verify_dataset(tmp_path).problems
    assert problem.endswith("the statistics of column 'x' are wrong")


@pytest.mark.parametrize("compression", ["zstd", None])
def test_compressed_shards_are_divided_into_parts(compression, tmp_path, monkeypatch):
    """The statistics do not depend on the compression, although compressed shards are one chunk."""
    for module_ in (collector, chunks):
        monkeypatch.setattr(module_, "CHUNK_BYTES", 5000)
    for module_ in (collector, statistics_module):
        monkeypatch.setattr(module_, "SCALARS", 64)
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=9000), "y": rng.integers(0, 9, (9000, 3))}
    text = [f"{k % 7}" for k in range(9000)]
    for name, more in (("fixed", {}), ("mixed", {"t": text})):
        npstream.write(tmp_path / name, data | more, compression=compression)
        found = read(tmp_path / name)
        assert_exact(found["x"], data["x"])
        assert_exact(found["y"], data["y"])
        # At most SCALARS values of a part are examined, so there were more than 20 parts.
        assert found["x"].examined > 64 * 20
    assert found["t"].count == 9000


# As bytes


@given(st.integers(0, 2000), st.sampled_from(["<i8", "<u2", "<f4"]))
def test_encoded_statistics_round_trip(count, dtype):
    statistics = ColumnStatistics(np.dtype(dtype).name)
    values = (np.arange(count) * 7).astype(dtype)
    add_scalars(statistics, values)
    texts = ColumnStatistics()
    add_values(texts, np.zeros(9, np.uint8), np.arange(3), np.arange(3))
    found = decode_statistics(encode_statistics({"a": statistics, "b": texts}))
    assert encode_statistics(found) == encode_statistics({"a": statistics, "b": texts})
    found["a"].merge(statistics)
    assert found["a"].total == 2 * statistics.total


def test_sums_beyond_64_bits_round_trip():
    statistics = ColumnStatistics("int64")
    add_scalars(statistics, np.full(1000, -(2**63)))
    (found,) = decode_statistics(encode_statistics({"a": statistics})).values()
    assert (found.total, found.squares) == (-1000 * 2**63, 1000 * 2**126)


@given(st.binary(max_size=60), st.integers(0, 10_000))
def test_damaged_statistics_raise_value_errors(noise, position):
    statistics = ColumnStatistics("int64")
    add_scalars(statistics, np.arange(300))
    body = bytearray(encode_statistics({"a": statistics}))
    begin = position % len(body)
    body[begin : begin + len(noise)] = noise
    try:
        decode_statistics(bytes(body))
    except ValueError as error:
        assert str(error)  # noqa: PT017


def test_bytes_of_another_format_raise():
    for body in (b"", b"\x80", b"\xc0", b"\x01\x01"):
        with pytest.raises(ValueError, match="do not follow the format"):
            decode_statistics(body)


def test_statistics_of_another_version_are_left_out():
    import msgpack

    assert decode_statistics(msgpack.packb({"version": 2, "columns": 5})) == {}


def test_statistics_cost_at_most_one_request(tmp_path):
    """They are in the bytes that opening reads, or in one further range."""

    class Counted:
        def __init__(self, store):
            self._store, self.requests = store, []

        def __getattr__(self, name):
            return getattr(self._store, name)

        def ranges(self, spans):
            spans = list(spans)
            self.requests.append(spans)
            return self._store.ranges(spans)

    small = {"x": np.arange(10)}
    large = {f"c{k}": np.random.default_rng(k).normal(size=20_000) for k in range(20)}
    for name, data, requests in (("small", small, 1), ("large", large, 2)):
        npstream.write(tmp_path / name, data, shard_size="100KiB")
        store = Counted(open_store(tmp_path / name))
        sidecar = Sidecar(store)
        assert len(sidecar.statistics()) == len(data)
        assert [len(spans) for spans in store.requests] == [1] * requests


def test_the_statistics_are_a_section_and_the_index_has_no_new_key(tmp_path):
    """Older readers ignore a section that they do not know."""
    npstream.write(tmp_path, {"x": np.arange(10)})
    sidecar = Sidecar(open_store(tmp_path))
    names = [row[0] for row in sidecar._sections.table["sections"]]
    assert names[0] == "statistics"
    assert json.loads((tmp_path / "index.json").read_text()).keys() == {"shards", "version"}


# Text


TEXT = {"jsonl": {}, "csv": {}, "tsv": {}, "xsv": {"separator": "::"}}


def text_rows(count=5000):
    rng = np.random.default_rng(0)
    words = ["", "a", "naïve", "日本", "x" * 80]
    return [
        {"word": words[int(k) % 5], "n": int(k) - 2, "f": float("nan") if k == 3 else k / 8}
        for k in rng.integers(0, 9, count)
    ]


def assert_text_statistics(found, rows):
    assert found.keys() == {"word", "n", "f"}
    for name, dtype in (("n", "int64"), ("f", "float64")):
        assert found[name].dtype == dtype
        assert_exact(found[name], np.array([row[name] for row in rows], dtype))
        assert found[name].count == len(rows)
    lengths = [len(row["word"].encode()) for row in rows]
    word = found["word"]
    assert (word.count, word.missing) == (len(rows), lengths.count(0))
    assert (word.nbytes, word.shortest, word.longest) == (sum(lengths), 0, 80)
    # Longer values are not counted.
    counts = collections.Counter(row["word"].encode() for row in rows if len(row["word"]) <= 64)
    if word.examined == len(rows):
        assert word.frequent.counts == counts
    assert set(word.frequent.counts) == set(counts)


@pytest.mark.parametrize("format", TEXT)
@pytest.mark.parametrize("newline", [None, "\r\n"])
@pytest.mark.parametrize("compression", [None, "gz"])
def test_text_has_statistics(format, newline, compression, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1 << 14)
    monkeypatch.setattr(collector, "CHUNK_BYTES", 1 << 14)
    rows, options = text_rows(), TEXT[format] | {"newline": newline, "compression": compression}
    npstream.write(tmp_path, rows, format=format, shard_size="50KB", **options)
    assert_text_statistics(written := read(tmp_path), rows)
    assert npstream.verify_dataset(tmp_path).problems == ()
    (tmp_path / "index.msgpack").unlink()
    npstream.build_index(tmp_path)
    for name, statistics in read(tmp_path).items():
        assert statistics.is_close(written[name])
        assert statistics.frequent.counts == written[name].frequent.counts
    npstream.build_index(tmp_path, columns=["n"])
    assert_text_statistics(read(tmp_path), rows)


def test_wrong_statistics_of_text_are_found(tmp_path, monkeypatch):
    npstream.write(tmp_path / "right", text_rows(20), format="jsonl")
    npstream.write(tmp_path / "wrong", text_rows(21)[1:], format="jsonl")
    wrong = read(tmp_path / "wrong")
    monkeypatch.setattr(Sidecar, "statistics", lambda self: wrong)
    problems = npstream.verify_dataset(tmp_path / "right").problems
    assert any("the statistics of column 'n' are wrong" in problem for problem in problems)


def test_integers_of_text_beyond_int64_have_no_statistics(tmp_path):
    rows = [{"n": 2**70, "m": 1}, {"n": 1, "m": 2}]
    npstream.write(tmp_path, rows, format="jsonl", shard_samples=1)
    assert read(tmp_path).keys() == {"m"}
    assert read(tmp_path)["m"].total == 3
    assert npstream.open(tmp_path)["n"][0] == 2**70


@pytest.mark.parametrize(
    "line", [b'{"n": ab}', b'{"m": 11}', b'["n", 11]', b'{"n": 1,,', b'{"n":"1"}', b"\xff" * 9]
)
def test_damaged_lines_have_no_statistics(line, tmp_path):
    """Reading them raises, and `verify` finds them."""
    npstream.write(tmp_path, [{"n": 1}, {"n": 11}, {"n": 2}], format="jsonl", sidecar=False)
    path = tmp_path / "shard.00000.json"
    path.write_bytes(path.read_bytes().replace(b'{"n": 11}', line))
    npstream.build_index(tmp_path)
    assert read(tmp_path) == {}
    assert len(npstream.verify_dataset(tmp_path).problems) == 1

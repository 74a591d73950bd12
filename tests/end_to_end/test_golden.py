"""Golden datasets, which Streaming wrote: every way of reading returns what Streaming reads."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import golden_data as golden
import numpy as np
import pytest

import npstream
from npstream.errors import (
    FormatError,
    IntegrityError,
    NpstreamError,
    StorageError,
    StorageNotFoundError,
)


def name_params(cases):
    """Return a parameter of a test for the name of each case."""
    return [pytest.param(case["name"], id=case["name"]) for case in cases]


CASES = golden.cases()
READABLE = [case for case in CASES if case["readable"] is True or case.get("unsafe")]
BAD = [case for case in CASES if case["name"].startswith("bad_")]
EMPTY = [case for case in CASES if case["name"].startswith("empty_")]
HASHED = [
    (case["name"], name) for case in READABLE for name in (case["args"] or {}).get("hashes", ())
]


def open_case(name, **options):
    case = golden.case(name)
    options.setdefault("allow_pickle", bool(case.get("unsafe")))
    return npstream.open(golden.FORMATS / case["dir"], split=case["split"], **options)


def check_samples(samples, expected):
    samples = list(samples)
    assert len(samples) == len(expected)
    for row, (sample, tagged) in enumerate(zip(samples, expected, strict=True)):
        golden.assert_same_sample(sample, tagged, f"sample {row}")


def check_column(column, expected):
    """Compare a loaded column with the samples; numbers stored as text are loaded as numbers."""
    assert len(column) == len(expected)
    for row, tagged in enumerate(expected):
        value = column[row]
        if tagged["t"] == "image":
            assert column.kind == "image"
            assert "file" not in tagged or value == golden.blob(tagged["file"])
            continue
        if tagged["t"] in ("int", "float"):
            assert column.dtype == {"int": np.int64, "float": np.float64}[tagged["t"]]
            value = value.item()
        golden.assert_same(value, tagged, f"row {row}")


def fit_int64(expected):
    """Return True if all integers fit int64."""
    return all(
        tagged["t"] != "int" or -(2**63) <= golden.value(tagged) < 2**63 for tagged in expected
    )


def random_indices(n):
    """Return random indices of n samples, with negative ones and duplicates."""
    return np.random.default_rng(n).integers(-n, n, n + 5)


def test_every_case_is_tested():
    tested = {case["name"] for case in READABLE + BAD + EMPTY} | {"cache_partial"}
    assert tested == {case["name"] for case in CASES}


@pytest.mark.parametrize("name", name_params(READABLE))
def test_samples_equal_those_of_streaming(name):
    expected = golden.expected(golden.case(name))
    ds = open_case(name)
    n = len(expected)
    assert ds.shape == (n,)
    assert set(ds.columns) == set(expected[0])
    check_samples((ds[i] for i in range(n)), expected)
    check_samples((ds[np.int32(i)] for i in range(-n, 0)), expected)
    check_samples(ds, expected)
    chosen = random_indices(n)
    check_samples(ds[chosen], [expected[i] for i in chosen])


@pytest.mark.parametrize("name", name_params(READABLE))
def test_columns_equal_those_of_streaming(name):
    expected = golden.expected(golden.case(name))
    ds = open_case(name)
    chosen = random_indices(len(ds))
    for column in ds.columns:
        values = [sample[column] for sample in expected]
        picked = [values[i] for i in chosen]
        for row, tagged in enumerate(values):
            golden.assert_same(ds[column][row], tagged)
        for row, tagged in zip(np.asarray(ds[column], object), values, strict=True):
            if tagged["t"] not in ("scalar", "ndarray"):  # object arrays hold their elements
                golden.assert_same(row, tagged)
        if not fit_int64(values):
            for read in (ds[column].load, ds.load, lambda name=column: np.asarray(ds[name])):
                with pytest.raises(OverflowError, match=r"sample \d+ .* dtype=object"):
                    read()
            continue
        check_column(ds[column].load(), values)
        check_column(ds[column][chosen].load(), picked)
        check_column(ds[[column]][chosen].load()[column], picked)


@pytest.mark.parametrize("name", name_params(READABLE))
def test_batches_equal_those_of_streaming(name):
    expected = golden.expected(golden.case(name))
    ds = open_case(name)
    chosen = random_indices(len(ds))
    ds = ds[[c for c in ds.columns if fit_int64([sample[c] for sample in expected])]]
    batch = ds[chosen].load()
    assert batch.ids.tolist() == (chosen % len(ds)).tolist()
    for column, values in batch.items():
        check_column(values, [expected[i][column] for i in chosen])


@pytest.mark.parametrize("name", name_params(READABLE))
@pytest.mark.parametrize("verify", [True, False])
def test_samples_are_equal_with_and_without_verification(name, verify):
    ds = open_case(name, verify=verify)
    check_samples(ds, golden.expected(golden.case(name)))


@pytest.mark.parametrize(("name", "hash_name"), HASHED)
def test_every_recorded_hash_can_be_verified(name, hash_name):
    ds = open_case(name, verify=hash_name)
    check_samples(ds, golden.expected(golden.case(name)))


@pytest.mark.parametrize("name", ["mds_h_all", "mds_hz_xxh64", "jsonl_zstd"])
def test_a_wrong_hash_raises(tmp_path, name):
    case = golden.case(name)
    shutil.copytree(golden.directory(case), tmp_path / "copy")
    index = json.loads((tmp_path / "copy" / "index.json").read_text())
    recorded = index["shards"][0]["raw_data"]["hashes"] or index["shards"][0]["zip_data"]["hashes"]
    for hash_name, right in list(recorded.items()):
        recorded[hash_name] = right[::-1]
        (tmp_path / "copy" / "index.json").write_text(json.dumps(index))
        with pytest.raises(IntegrityError, match=f"its {hash_name} is {right}"):
            npstream.open(tmp_path / "copy", verify=hash_name)[0]
        assert npstream.open(tmp_path / "copy", verify=False)[0]
        recorded[hash_name] = right


@pytest.mark.parametrize("name", name_params(READABLE))
def test_datasets_and_columns_can_be_pickled(name):
    ds = open_case(name)
    expected = golden.expected(golden.case(name))
    list(ds[::2])  # memory maps are not pickled
    check_samples(pickle.loads(pickle.dumps(ds)), expected)
    check_samples(pickle.loads(pickle.dumps(ds[::-2])), expected[::-2])
    column = ds.columns[0]
    copy = pickle.loads(pickle.dumps(ds[column][1:]))
    assert (copy.shape, copy.dtype) == (ds[column][1:].shape, ds[column].dtype)


@pytest.mark.parametrize("name", ["mds_ragged", "mds_c_zstd", "jsonl_shards", "merged_root"])
def test_threads_share_a_dataset(name):
    expected = golden.expected(golden.case(name))
    ds = open_case(name)

    def read(seed):
        rows = np.random.default_rng(seed).permutation(len(expected)).tolist()
        check_samples((ds[i] for i in rows), [expected[i] for i in rows])
        check_samples(ds[rows], [expected[i] for i in rows])
        return ds[rows].load().ids.tolist() == rows

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(16)))


def _read(ds):
    return list(ds), ds.load().ids.tolist()


@pytest.mark.parametrize("name", ["mds_ragged", "mds_c_zstd", "jsonl_shards"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_processes_share_a_dataset(name, method):
    expected = golden.expected(golden.case(name))
    ds = open_case(name)
    list(ds[: len(ds) // 2])  # map some of the shards before
    with multiprocessing.get_context(method).Pool(1) as pool:
        samples, ids = pool.apply(_read, [ds])
    check_samples(samples, expected)
    assert ids == list(range(len(expected)))
    check_samples(ds, expected)


@pytest.mark.parametrize("name", name_params(EMPTY))
def test_empty_datasets_have_no_samples(name):
    ds = open_case(name)
    assert ds.shape == (0,)
    assert list(ds) == []
    assert ds.load().ids.shape == (0,)
    with pytest.raises(IndexError, match="out of bounds"):
        ds[0]


def test_pickles_raise_unless_allowed():
    with pytest.raises(ValueError, match=r"pickled.*allow_pickle=True"):
        open_case("mds_pkl", allow_pickle=False)


def test_present_shards_are_read_and_missing_ones_raise():
    case = golden.case("cache_partial")
    expected = golden.expected(case)
    ds = open_case("cache_partial")
    assert len(ds) == len(expected)
    present = np.zeros(len(ds), bool)
    for first, last in case["present_sample_ranges"]:
        present[first:last] = True
        check_samples((ds[i] for i in range(first, last)), expected[first:last])
    check_samples(ds[present], [expected[i] for i in np.flatnonzero(present)])
    for i in np.flatnonzero(~present):
        with pytest.raises(StorageError, match=r"No such file.*shard"):
            ds[i]
    for read in (ds.load, lambda: list(ds), lambda: ds[~present].load()):
        with pytest.raises(StorageError, match=r"No such file.*shard"):
            read()


@pytest.mark.parametrize("name", name_params(BAD))
def test_bad_datasets_raise(name):
    case = golden.case(name)
    with pytest.raises((NpstreamError, ValueError)) as caught:
        list(open_case(name, verify=case.get("validate_hash") or "auto"))
    kinds = {
        "bad_missing_shard": StorageNotFoundError,
        "bad_hash_zip": IntegrityError,
        "bad_hash_name": ValueError,
    }
    assert caught.type is kinds.get(name, FormatError)
    assert str(golden.directory(case)) in str(caught.value)

"""The real package reads what npstream writes, and both go on from each other's states.

These tests need mosaicml-streaming, which needs older packages than the other tests.
`.ci/reference` makes a venv and runs them there; elsewhere they are deselected.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from types import ModuleType

import golden_data as golden
import numpy as np
import pytest
from streaming_reference import GOLDEN

import npstream
import npstream.streaming

pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore"),  # the real package warns about its dependencies
]

CHECKPOINTS = GOLDEN / "checkpoints" / "data"


@pytest.fixture(scope="module")
def real():
    """Return the real package; empty modules stand in for torchvision, which only images need."""
    importlib.import_module("transformers")  # looks for torchvision, so before the empty modules
    if importlib.util.find_spec("torchvision") is None:
        vision, datasets = ModuleType("torchvision"), ModuleType("torchvision.datasets")
        transforms = ModuleType("torchvision.transforms")
        functional = ModuleType("torchvision.transforms.functional")
        datasets.VisionDataset = type("VisionDataset", (), {})
        functional.to_tensor = None
        for module in (vision, datasets, transforms, functional):
            sys.modules[module.__name__] = module
    return importlib.import_module("streaming")


CASES = [
    case
    for case in golden.cases()
    if case["writer"] in ("MDSWriter", "JSONWriter", "CSVWriter", "TSVWriter", "XSVWriter")
    and case["readable"] is True
    and "partitions" not in golden.inputs(case)
]


def write(package, case, out):
    """Write the input of a case with the writer of a package."""
    columns = case["args"]["columns"]
    with getattr(package, case["writer"])(out=str(out), **case["args"]) as writer:
        for tagged in golden.inputs(case)["samples"]:
            sample = golden.sample(tagged)
            writer.write({k: golden.without_palette(v, columns[k]) for k, v in sample.items()})


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_npstream_reads_datasets_of_streaming(case, real, tmp_path):
    write(real, case, tmp_path / "out")
    ds = npstream.streaming.StreamingDataset(
        local=str(tmp_path / "out"), allow_unsafe_types=bool(case.get("unsafe"))
    )
    for sample, tagged in zip(ds[:], golden.expected(case), strict=True):
        golden.assert_same_sample(sample, tagged)


def test_streaming_reads_datasets_of_npstream(real, tmp_path):
    """One dataset reads all cases: Streaming keeps each dataset's files open until the end."""
    for case in CASES:
        write(npstream.streaming, case, tmp_path / case["name"])
    streams = [real.Stream(local=str(tmp_path / case["name"])) for case in CASES]
    ds = real.StreamingDataset(streams=streams, batch_size=1, allow_unsafe_types=True)
    expected = [tagged for case in CASES for tagged in golden.expected(case)]
    assert ds.size == len(expected)
    for number, tagged in enumerate(expected):
        golden.assert_same_sample(ds[number], tagged, f"sample {number}")


RUNS = {
    "py1e": ({"shuffle": True}, [{}]),
    "py1s": ({"shuffle": True, "shuffle_algo": "py1s"}, [{}]),
    "py1br": ({"shuffle": True, "shuffle_algo": "py1br", "shuffle_block_size": 90}, [{}]),
    "py2s": ({"shuffle": True, "shuffle_algo": "py2s", "num_canonical_nodes": 4}, [{}]),
    "naive": ({"shuffle": True, "shuffle_algo": "naive"}, [{}]),
    "in order": ({}, [{}]),
    "proportions": ({"shuffle": True}, [{"proportion": 2}, {"proportion": 1}]),
    "repeats": ({"shuffle": True, "sampling_method": "fixed"}, [{"repeat": 1.5}, {"choose": 77}]),
    "epoch size": ({"shuffle": True, "epoch_size": 300}, [{}, {}, {}]),
    "stratified": ({"shuffle": True, "batching_method": "stratified"}, [{}, {}]),
    "per stream": ({"shuffle": True, "batching_method": "per_stream"}, [{}, {}]),
    "per device": ({"shuffle": True, "batching_method": "device_per_stream"}, [{}, {}]),
}


def collate(samples):
    return [[int(sample["id"]) for sample in samples]]


def make_loader(package, name, workers):
    arguments, weights = RUNS[name]
    streams = [
        package.Stream(local=str(CHECKPOINTS / directory), **weight)
        for directory, weight in zip("abc", weights, strict=False)
    ]
    ds = package.StreamingDataset(streams=streams, batch_size=6, **arguments)
    return package.StreamingDataLoader(ds, batch_size=6, num_workers=workers, collate_fn=collate)


def batches(loader, count=None):
    result = []
    for (ids,) in loader:
        result.append(ids)
        if len(result) == count:
            break
    return result


WITH_WORKERS = ("py1e", "proportions", "stratified")


@pytest.mark.parametrize(
    ("name", "workers"), [*((name, 0) for name in RUNS), *((name, 2) for name in WITH_WORKERS)]
)
def test_runs_go_on_in_the_other_package(name, workers, real):
    both = (npstream.streaming, real)
    ours, theirs = (make_loader(package, name, workers) for package in both)
    epoch = batches(ours)
    assert epoch == batches(theirs)
    first = batches(ours, 5)
    assert first == batches(theirs, 5)
    assert first != epoch[:5] or not RUNS[name][0].get("shuffle")
    state = ours.state_dict()
    assert state == theirs.state_dict()
    del ours, theirs
    resumed = []
    for package in both:
        loader = make_loader(package, name, workers)
        loader.load_state_dict(state)
        resumed.append((batches(loader), batches(loader, 3), loader.state_dict()))
        del loader
    assert resumed[0] == resumed[1]
    assert len(resumed[0][0]) == len(epoch) - 5


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_merged_indexes(compression, real, tmp_path):
    for part in range(3):
        path = str(tmp_path / "root" / str(part))
        with npstream.streaming.MDSWriter(
            columns={"x": "int"}, out=path, compression=compression
        ) as writer:
            for number in range(10):
                writer.write({"x": 10 * part + number})
    npstream.streaming.merge_index(str(tmp_path / "root"))
    ds = real.StreamingDataset(local=str(tmp_path / "root"), batch_size=1)
    assert [ds[i]["x"] for i in range(30)] == list(range(30))


@pytest.mark.parametrize(
    "index", [3, -1, np.int64(2), slice(2, 6), slice(-3, None), [1, [2, 3]], np.array([[4], [5]])]
)
def test_indices(index, real, tmp_path):
    npstream.write(tmp_path, {"x": np.arange(20)})
    want = real.StreamingDataset(local=str(tmp_path), batch_size=1)[index]
    assert npstream.streaming.StreamingDataset(local=str(tmp_path))[index] == want


SIZES = ["64kb", "1.5mb", "10b", "123", 7, "100k", "64M", "77b", "1.5k", "oops", "5x", ""]


@pytest.mark.parametrize("text", SIZES)
@pytest.mark.parametrize("name", ["bytes_to_int", "number_abbrev_to_int"])
def test_helper_functions(name, text, real):
    results = []
    for package in ("npstream.streaming.base.util", "streaming.base.util"):
        try:
            results.append(getattr(importlib.import_module(package), name)(text))
        except ValueError:
            results.append(ValueError)
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["StreamingDataset", "Stream", "LocalDataset", "MDSWriter"])
def test_parameters(name, real):
    """Every parameter is there, with the same default."""
    ours, theirs = (
        inspect.signature(getattr(package, name)).parameters
        for package in (npstream.streaming, real)
    )
    assert {n: p.default for n, p in ours.items()} == {n: p.default for n, p in theirs.items()}

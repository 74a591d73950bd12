"""The costs of orders, compared with the requests of real epochs."""

from __future__ import annotations

import numpy as np
import pytest

import npstream
from npstream import Shuffle

ROWS = 4000
TEXT = {"text": ["t" * (row % 50) for row in range(ROWS)], "x": np.arange(ROWS)}
LINES = {"text": TEXT["text"], "x": list(range(ROWS))}
KINDS = {
    "fixed": ({"x": np.arange(ROWS), "y": np.zeros((ROWS, 4))}, {}),
    "text": (TEXT, {}),
    "text without side-car": (TEXT, {"sidecar": False}),
    "zstd": (TEXT, {"compression": "zstd"}),
    "jsonl": (LINES, {"format": "jsonl"}),
}
BLOCKS = [0, "20KiB", Shuffle("40KiB", lanes=4), Shuffle("40KiB", stratified=True), None]


@pytest.fixture
def url(request):
    import fsspec

    yield f"memory://{request.node.name}"
    fsspec.filesystem("memory").store.clear()


def shard_requests(requests):
    return [span for span in requests if span[0].startswith("shard")]


@pytest.mark.parametrize("kind", KINDS)
def test_requests_and_bytes_are_those_of_a_prefetch(kind, url, tmp_path, requests):
    data, settings = KINDS[kind]
    npstream.write(url, data, shard_size="16KiB", **settings)
    ds = npstream.open(url, cache=tmp_path / "cache")
    costs = ds.shuffle_costs(64, BLOCKS)
    assert not shard_requests(requests)
    ds.prefetch()
    spans = shard_requests(requests)
    nbytes = sum(nbytes for _, _, nbytes in spans)
    for cost in costs:
        # Each shard is one chunk here, so the order does not change the requests. No request
        # fetches two neighboring chunks.
        assert (cost.requests, cost.reads) == (len(spans), "chunks")
        assert cost.nbytes == pytest.approx(nbytes, rel=0.001)


@pytest.mark.parametrize("block", [0, "20KiB", None])
def test_an_epoch_takes_about_the_estimated_requests(block, url, tmp_path, requests):
    npstream.write(url, TEXT, shard_size="4KiB")
    ds = npstream.open(url, cache=tmp_path / "cache")
    (cost,) = ds.shuffle_costs(16, [block])
    rows = [batch.ids for batch in ds.iter(0, 1, batch_size=16, shuffle=Shuffle(block))]
    assert len(np.unique(np.concatenate(rows))) == ROWS
    # The first samples are read by requests of their own, while their chunks are being fetched.
    assert 0.5 * cost.requests < len(shard_requests(requests)) < 1.5 * cost.requests


@pytest.mark.parametrize("kind", ["fixed", "text"])
def test_a_cache_that_is_too_small_takes_a_request_for_each_sample(kind, url, tmp_path, requests):
    rows = 6000
    text = ["t" * (4000 + row % 50) for row in range(rows)]
    data = {"y": np.zeros((rows, 500))} if kind == "fixed" else {"y": text}
    npstream.write(url, data, shard_size="8MiB")
    ds = npstream.open(url, cache=tmp_path / "cache", cache_limit="9MB")
    whole, limited = ds.shuffle_costs(64, [0, None])
    assert (whole.reads, limited.reads) == ("chunks", "samples")
    assert limited.requests == rows
    assert limited.first_batch < whole.first_batch
    (cached,) = ds.shuffle_costs(64, [None], cache_limit="1GB")
    assert cached.reads == "chunks"
    assert cached.requests < rows / 100
    for _ in ds.iter(0, 1, batch_size=64, shuffle=Shuffle(None), transform=lambda batch: None):
        pass
    spans = shard_requests(requests)
    # A few neighbors are read together.
    assert 0.8 * rows <= len(spans) <= 1.05 * rows


def test_compressed_shards_that_do_not_fit_the_cache_cannot_be_read(url, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (3000, 8000), np.uint8)
    npstream.write(url, {"y": noise}, shard_size="4MiB", compression="zstd")
    ds = npstream.open(url, cache=tmp_path / "cache", cache_limit="9MB")
    (cost,) = ds.shuffle_costs(64, [None])
    assert (cost.reads, cost.requests, cost.nbytes, cost.first_batch) == ("nothing", 0, 0, 0)
    with pytest.raises(ValueError, match="no sample can be read alone"):
        next(iter(ds.iter(0, 1, batch_size=64, shuffle=Shuffle(None))))


def test_costs_rise_with_the_block(tmp_path):
    npstream.write(tmp_path / "data", {"x": np.arange(100_000)}, shard_size="4KiB")
    ds = npstream.open(tmp_path / "data")
    costs = ds.shuffle_costs(100)
    nbytes = ds.shards["bytes"].sum()
    expected = [0, *(nbytes // share for share in (1024, 256, 64, 16, 4)), None]
    assert [cost.block for cost in costs] == expected
    for name in ("memory", "first_batch"):
        values = [getattr(cost, name) for cost in costs]
        assert values == sorted(values)
    variances = [cost.variance for cost in costs]
    assert variances == sorted(variances, reverse=True)
    assert variances[-1] == pytest.approx(1)
    assert {(cost.requests, cost.nbytes) for cost in costs} == {(len(ds.shards), nbytes)}
    assert costs[-1].memory == nbytes
    # All samples of a chunk have the same label, so the variance by label is that by chunk.
    labels = np.random.default_rng(0).permutation(len(ds.shards))
    by_label = ds.shuffle_costs(100, by=np.repeat(labels, ds.shards["samples"]))
    for cost, other in zip(costs[1:-2], by_label[1:-2], strict=True):
        assert other.variance == pytest.approx(cost.variance, rel=0.25)
    # The values of x rise with the row, so without a shuffle a batch holds nearly equal values: the
    # variance of its mean is batch_size times that of a perfect shuffle.
    by_x = ds.shuffle_costs(100, [0, 2000, None], by="x")
    assert by_x[0].variance == pytest.approx(100, rel=0.01)
    assert by_x[2].variance == pytest.approx(1)


def test_views_count_the_chunks_that_they_touch(tmp_path):
    npstream.write(tmp_path / "data", {"x": np.arange(3000)}, shard_samples=100)
    ds = npstream.open(tmp_path / "data")
    sizes = ds.shards["bytes"]
    for view in (ds[250:950], ds[250:950][::-1], ds[950:249:-1], ds[np.arange(250, 950)]):
        assert len(view) in (700, 701)
        (cost,) = view.shuffle_costs(10, [None])
        assert (cost.requests, cost.nbytes) == (8, sizes[2:10].sum())
        (cost,) = view.shuffle_costs(10, [0])
        assert cost.first_batch in (sizes[2], sizes[9])
    with pytest.raises(ValueError, match="whose samples ascend or descend"):
        ds.shuffle(0).shuffle_costs(10)
    with pytest.raises(ValueError, match="ask each source of a mixture"):
        npstream.mix({"a": ds, "b": ds}).shuffle_costs(10)
    assert [c.requests for c in ds[:0].shuffle_costs(10, [0, "1KB", None])] == [0, 0, 0]


def test_tables_are_shown(tmp_path):
    npstream.write(tmp_path / "data", {"x": np.arange(3000)}, shard_samples=100)
    ds = npstream.open(tmp_path / "data")
    costs = ds.shuffle_costs(10, [0, "2KB", None], cache_limit="5GB")
    title, headers, first, *_ = repr(costs).splitlines()
    assert title == (
        "<npstream.ShuffleCosts: 3,000 samples, 40.2 KiB in 30 chunks, batches of 10, a cache of "
        "5.0 GiB"
    )
    assert headers.split() == [
        "block", "lanes", "reads", "requests", "bytes", "memory", "first", "batch", "variance"
    ]  # fmt: skip
    assert first.split()[:4] == ["0", "1", "chunks", "30"]
    assert '<td class="npstream-n">all</td>' in costs._repr_html_()
    frame = costs.to_pandas()
    assert frame["block"].isna().tolist() == [False, False, True]
    assert frame["requests"].tolist() == [30, 30, 30]
    assert [cost.block for cost in costs[1:]] == [2048, None]
    assert costs[-1].block is None


def test_bad_arguments_raise(tmp_path):
    npstream.write(tmp_path / "data", {"x": [1.0, np.nan], "text": ["a", "b"]})
    ds = npstream.open(tmp_path / "data")
    with pytest.raises(ValueError, match="batch_size=0"):
        ds.shuffle_costs(0)
    with pytest.raises(ValueError, match="cannot read the size 'big'"):
        ds.shuffle_costs(1, ["big"])
    with pytest.raises(TypeError, match="by='text': expected a column of numbers or bools"):
        ds.shuffle_costs(1, by="text")
    with pytest.raises(ValueError, match="by='x': expected finite numbers"):
        ds.shuffle_costs(1, by="x")
    with pytest.raises(ValueError, match=r"by=an array: .* each of 2 rows, got the shape \(3,\)"):
        ds.shuffle_costs(1, by=[1, 2, 3])
    with pytest.raises(TypeError, match="blocks='64MB': expected a sequence of sizes, such as"):
        ds.shuffle_costs(1, "64MB")

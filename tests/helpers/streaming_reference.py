"""Streaming's orders: golden results of the real package, and reference code in plain NumPy.

The reference of py1e is in `bench_streaming_orders`, which compares its speed.
"""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from bench_streaming_orders import numpy_lanes, numpy_py1e, split_spans
from npstream.orders.streaming.partition import lane_bounds
from npstream.orders.streaming.runs import Pieces

GOLDEN = Path(__file__).parents[1] / "golden"


@functools.cache
def golden(part):
    """Return the cases of a directory of golden data."""
    return json.loads((GOLDEN / part / "cases.json").read_text("utf-8"))["cases"]


@functools.cache
def arrays(file):
    """Return the arrays of a file of golden data."""
    with np.load(GOLDEN / file) as archive:
        return dict(archive)


def order(algorithm, units, lanes, seed, epoch, block_size):
    """Return a whole order, like Streaming's ``get_shuffle``."""
    units = [int(size) for size in units]
    if algorithm == "naive":
        return np.random.default_rng(seed + epoch).permutation(sum(units))
    if algorithm == "py1e":
        return numpy_py1e(units, lanes, seed, epoch, block_size)
    if algorithm == "py2s":
        return py2s(units, lanes, seed, epoch)
    lane_spans = numpy_lanes(units, lanes, seed)
    rng = np.random.default_rng(seed + epoch)
    for spans in lane_spans:
        rng.shuffle(spans)
    if algorithm == "py1br":
        return py1br(lane_spans, rng, block_size)
    spans = itertools.chain(*lane_spans)
    return np.concatenate([shuffled(np.arange(*span), rng) for span in spans])


def shuffled(samples, rng):
    samples = samples.copy()
    rng.shuffle(samples)
    return samples


def py1br(lane_spans, rng, block_size):
    # Streaming draws the width of each block from this range.
    min_width, max_width = int(0.75 * block_size), int(1.25 * block_size)
    staggers = rng.integers(0, min_width, len(lane_spans)).tolist()
    parts = []
    for spans, stagger in zip(lane_spans, staggers, strict=True):
        samples = np.concatenate([np.arange(0), *itertools.starmap(np.arange, spans)])
        blocks, start = [], 0
        while start < len(samples):
            width = int(rng.integers(min_width, max_width))
            block = slice(max(start - stagger, 0), min(start + width - stagger, len(samples)))
            blocks.append(block)
            start += block.stop - block.start
        for block in blocks:
            rng.shuffle(samples[block])
        parts.append(samples)
    return np.concatenate(parts)


def py2s(units, lanes, seed, epoch):
    seeded_rng = np.random.default_rng(seed)
    ends = np.cumsum(units).tolist()
    unit_samples = [np.arange(end - size, end) for size, end in zip(units, ends, strict=True)]
    unit_order = list(range(len(units)))
    seeded_rng.shuffle(unit_order)
    samples = np.concatenate([shuffled(unit_samples[unit], seeded_rng) for unit in unit_order])
    bounds = np.cumsum([0, *(units[unit] for unit in unit_order)]).tolist()
    stops = [len(samples) * (lane + 1) // lanes for lane in range(lanes)]
    rng = np.random.default_rng(seed + epoch)
    parts = []
    for spans in split_spans(list(itertools.pairwise(bounds)), stops):
        rng.shuffle(spans)
        parts += [shuffled(samples[begin:end], rng) for begin, end in spans]
    return np.concatenate(parts)


def expected(case, name):
    return arrays(f"orders/{case['file']}")[f"{case['id']}.{name}"]


def golden_cases(*kinds):
    cases = [case for case in golden("orders") if case["kind"] in kinds]
    return pytest.mark.parametrize("case", cases, ids=[case["id"] for case in cases])


def run_golden(case, run):
    """Return the result of `run`, or None if the case expects it to raise and it does."""
    if "raises" not in case:
        return run()
    with pytest.raises(ValueError, match=r"\w+"):
        run()
    return None


def full_order(shuffle, units):
    """Return a whole order, lane by lane."""
    units = np.array(units, np.int64)
    shuffle.check(int(units.sum()), int(units.max()))
    order = shuffle.order(Pieces.consecutive(units))
    bounds = lane_bounds(int(units.sum()), shuffle.lanes).tolist()
    parts = [order.rows(*each) for each in itertools.pairwise(bounds) if each[0] < each[1]]
    return np.concatenate(parts)


def arrange_slots(values, world, workers, batch_size):
    """Arrange values like Streaming: by node, rank, worker, batch, and position in the batch."""
    missing = -len(values) % (world.ranks * workers * batch_size)
    values = np.concatenate([values, np.full(missing, -1)])
    shape = (-1, workers, world.nodes, world.ranks_per_node, batch_size)
    return values.reshape(shape).transpose(2, 3, 1, 0, 4)


def assert_resolved(case, counts, proportions, sizes):
    resolved = case["resolved"]
    assert counts.sum() == resolved["epoch_size"]
    repeats = counts / sizes
    for stream, count, proportion, repeat in zip(
        resolved["streams"], counts, proportions, repeats, strict=True
    ):
        assert count == stream["choose"]
        assert float(proportion).hex() == stream["proportion"]
        assert float(repeat).hex() == stream["repeat"]


BY_STREAM = ["per_stream", "stratified", "device_per_stream"]

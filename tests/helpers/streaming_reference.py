"""Streaming's orders: what the real package gave, and its shuffles step by step in plain NumPy.

py1e stands in the benchmark, which measures against it.
"""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path

import numpy as np

from bench_streaming_orders import cut, numpy_lanes, numpy_py1e

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
    """Return all of an order, as Streaming's ``get_shuffle`` does."""
    units = [int(size) for size in units]
    if algorithm == "naive":
        return np.random.default_rng(seed + epoch).permutation(sum(units))
    if algorithm == "py1e":
        return numpy_py1e(units, lanes, seed, epoch, block_size)
    if algorithm == "py2s":
        return py2s(units, lanes, seed, epoch)
    laid = numpy_lanes(units, lanes, seed)
    rng = np.random.default_rng(seed + epoch)
    for spans in laid:
        rng.shuffle(spans)
    if algorithm == "py1br":
        return py1br(laid, rng, block_size)
    return np.concatenate([shuffled(np.arange(*span), rng) for span in itertools.chain(*laid)])


def shuffled(samples, rng):
    samples = samples.copy()
    rng.shuffle(samples)
    return samples


def py1br(laid, rng, block_size):
    least, most = int(0.75 * block_size), int(1.25 * block_size)
    staggers = rng.integers(0, least, len(laid)).tolist()
    parts = []
    for spans, stagger in zip(laid, staggers, strict=True):
        samples = np.concatenate([np.arange(0), *itertools.starmap(np.arange, spans)])
        blocks, at = [], 0
        while at < len(samples):
            width = int(rng.integers(least, most))
            block = slice(max(at - stagger, 0), min(at + width - stagger, len(samples)))
            blocks.append(block)
            at += block.stop - block.start
        for block in blocks:
            rng.shuffle(samples[block])
        parts.append(samples)
    return np.concatenate(parts)


def py2s(units, lanes, seed, epoch):
    fixed = np.random.default_rng(seed)
    ends = np.cumsum(units).tolist()
    laid = [np.arange(end - size, end) for size, end in zip(units, ends, strict=True)]
    which = list(range(len(units)))
    fixed.shuffle(which)
    laid = np.concatenate([shuffled(laid[unit], fixed) for unit in which])
    bounds = np.cumsum([0, *(units[unit] for unit in which)]).tolist()
    stops = [len(laid) * (lane + 1) // lanes for lane in range(lanes)]
    rng = np.random.default_rng(seed + epoch)
    parts = []
    for spans in cut(list(itertools.pairwise(bounds)), stops):
        rng.shuffle(spans)
        parts += [shuffled(laid[begin:end], rng) for begin, end in spans]
    return np.concatenate(parts)

"""Saved states of earlier releases, with the samples that followed.

``python tests/helpers/saved_states.py FILE`` writes a file of states, and `test_saved_states`
resumes from all files. A saved state must always resume at the same sample, so existing files never
change. A release with different states adds a new file.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import npstream
from npstream import Shuffle, StreamingShuffle

FOLLOWING = 6
"""Number of batches or samples to compare after each state."""

SIZES = {"a": 211, "b": 97, "c": 34}


def write(root: Path) -> None:
    """Write the datasets of the states; their bytes must be equal in all releases."""
    for number, (name, size) in enumerate(SIZES.items()):
        npstream.write(
            root / name,
            [{"x": row, "text": f"{number}:{row}" * (row % 5)} for row in range(size)],
            columns={"x": "int", "text": "str"},
            shard_size="1KiB",
        )


def open_sources(root: Path) -> dict[str, npstream.Dataset]:
    """Open the datasets."""
    return {name: npstream.open(root / name) for name in SIZES}


IterationFactory = Callable[[dict[str, npstream.Dataset]], Any]


def _views() -> dict[str, IterationFactory]:
    lanes = Shuffle(block="500B", lanes=3)
    batches: dict[str, Any] = {"batch_size": 7}
    return {
        "in order": lambda sources: sources["a"].iter(0, 1, **batches),
        "shuffled": lambda sources: sources["a"].iter(0, 1, shuffle=True, seed=5, **batches),
        "lanes": lambda sources: sources["a"].iter(0, 1, shuffle=lanes, seed=1 << 40, **batches),
        "stratified blocks": lambda sources: sources["a"].iter(
            0, 1, shuffle=Shuffle("500B", 3, stratified=True), seed=4, **batches
        ),
        "permuted": lambda sources: sources["a"].iter(0, 1, shuffle=Shuffle(block=None), **batches),
        "one of two ranks": lambda sources: sources["a"].iter(
            1, 2, shuffle=Shuffle("500B", 2), global_batch_size=10, last="drop"
        ),
        "two nodes": lambda sources: sources["a"].iter(
            2, 4, shuffle=Shuffle("500B", 4), global_batch_size=12, ranks_per_node=2
        ),
        "samples": lambda sources: sources["a"].iter(
            0, 1, shuffle=True, batched=False, last="short"
        ),
        "replicated": lambda sources: sources["a"].iter(
            3, 4, shuffle=lanes, replication=2, batch_size=5
        ),
        "long epochs": lambda sources: sources["a"].iter(
            0, 1, shuffle=lanes, epoch_size=300, **batches
        ),
        "short epochs": lambda sources: sources["a"].iter(
            0, 1, shuffle=True, epoch_size=40, **batches
        ),
        "slice": lambda sources: sources["a"][200:3:-3].iter(0, 1, shuffle=lanes, **batches),
        "mask": lambda sources: sources["a"][sources["a"]["x"] % 3 == 1].iter(
            0, 1, shuffle=True, **batches
        ),
        "array": lambda sources: sources["a"][np.arange(60).reshape(3, 20) * 7 % 211].iter(
            0, 1, shuffle=True, **batches
        ),
        "shuffled view": lambda sources: (
            sources["a"].shuffle(3, block="500B", lanes=2)[::2].iter(0, 1, shuffle=lanes, **batches)
        ),
        "part": lambda sources: sources["a"].random_split([0.5, 0.5], 9)[1].iter(0, 1, **batches),
        "part by chunk": lambda sources: (
            sources["a"]
            .random_split([0.5, 0.5], 9, by="chunk")[0]
            .iter(0, 1, shuffle=True, **batches)
        ),
        "one column": lambda sources: sources["a"][["x"]].iter(0, 1, shuffle=True, **batches),
    }


def _mixtures() -> dict[str, IterationFactory]:
    weights = {"a": 3, "b": 2, "c": 1}
    schedule = [(0, weights), (120, {"a": 1, "b": 1, "c": 4})]
    lanes = Shuffle(block="500B", lanes=4)

    def mixed(weights: Any = weights, **settings: Any) -> IterationFactory:
        settings = {"shuffle": lanes, "seed": 2, "batch_size": 12, **settings}
        return lambda sources: npstream.mix(sources, weights).iter(0, 1, **settings)

    views = {"a": slice(None, None, 2), "b": slice(5, None), "c": slice(None)}
    return {
        "random": mixed(),
        "by size": mixed(None, shuffle=True),
        "not shuffled": mixed(shuffle=False),
        "schedule": mixed(schedule),
        "stratified": mixed(batching="stratified"),
        "stratified passes": mixed(shuffle=Shuffle("500B", 4, stratified=True)),
        "per stream": mixed(batching="per_stream", epoch_size=240),
        "device per stream": mixed(batching="device_per_stream"),
        "own sizes": mixed(batching="per_stream", batch_size={"a": 8, "b": 4, "c": 2}),
        "views": lambda sources: npstream.mix(
            {name: sources[name][rows] for name, rows in views.items()}, weights
        ).iter(0, 1, shuffle=lanes, batch_size=12),
        "part of a mixture": lambda sources: npstream.mix(sources)[::3].iter(
            0, 1, shuffle=True, batch_size=12
        ),
    }


def _streaming() -> dict[str, IterationFactory]:
    cases: dict[str, IterationFactory] = {}
    for name in ("py1e", "py1s", "py1br", "py2s", "naive", None):
        settings = StreamingShuffle(name, shuffle_block_size=64, num_canonical_nodes=2)
        cases[f"streaming {name}"] = _streamed(settings)
    cases["streaming by name"] = _streamed("py1e")
    orig = StreamingShuffle("py1s", num_canonical_nodes=2, partition_algo="orig", shuffle_seed=3)
    cases["streaming orig"] = _streamed(orig)
    cases["streaming epoch size"] = _streamed(StreamingShuffle("py1e"), epoch_size=90)
    for batching in ("random", "stratified", "per_stream", "device_per_stream"):
        weighted = StreamingShuffle(
            "py1e", proportion={"a": 2, "b": 1, "c": 1}, batching_method=batching,
            shuffle_block_size=64,
        )  # fmt: skip
        cases[f"streams {batching}"] = lambda sources, weighted=weighted: npstream.mix(
            sources
        ).iter(0, 1, shuffle=weighted, batch_size=8)
    return cases


def _streamed(settings: Any, **options: Any) -> IterationFactory:
    return lambda sources: sources["a"].iter(0, 1, shuffle=settings, batch_size=7, **options)


CASES = {**_views(), **_mixtures(), **_streaming()}


def items(iteration: Any) -> Iterator[Any]:
    """Yield column ``x`` of each sample or batch, epoch after epoch."""
    while True:
        for item in iteration:
            yield item["x"] if isinstance(item["x"], int) else item["x"].tolist()


def make_records(root: Path) -> list[dict[str, Any]]:
    """Return states of all cases, each with the batches or samples that follow it."""
    write(root)
    sources = open_sources(root)
    records = []
    for case, make in CASES.items():
        whole = list(islice(items(make(sources)), 60))
        for stop in (0, 1, 5, 29, 47):
            iteration = make(sources)
            batches = items(iteration)
            for _ in range(stop):
                next(batches)
            state = json.loads(json.dumps(iteration.state_dict()))
            following = whole[stop : stop + FOLLOWING]
            records.append({"case": case, "state": state, "following": following})
        if case.startswith("stream"):
            continue  # no state of Streaming's orders is stored with skipped batches
        second = make(sources)
        second.skip(2, 4)
        state = json.loads(json.dumps(second.state_dict()))
        following = list(islice(items(second), FOLLOWING))
        records.append({"case": case, "state": state, "following": following})
    records += _continued(sources)
    return records


def _continued(sources: dict[str, npstream.Dataset]) -> list[dict[str, Any]]:
    """Return states of runs whose mixture changed in the middle."""
    settings: dict[str, Any] = {"shuffle": Shuffle("500B", 4), "batch_size": 12}
    first_mixture = npstream.mix({name: sources[name] for name in "ab"}, {"a": 2, "b": 1})
    second_mixture = npstream.mix(sources, {"a": 1, "b": 1, "c": 1})
    records = []
    for stop in (3, 40):
        first = first_mixture.iter(0, 1, **settings)
        for _ in islice(items(first), stop):
            pass
        second = second_mixture.iter(0, 1, **settings)
        second.load_state_dict(second_mixture.continuing(first.state_dict()))
        batches = items(second)
        for _ in range(4):
            next(batches)
        state = json.loads(json.dumps(second.state_dict()))
        following = list(islice(batches, FOLLOWING))
        records.append({"case": "continued", "state": state, "following": following})
    return records


CASES["continued"] = lambda sources: npstream.mix(sources, {"a": 1, "b": 1, "c": 1}).iter(
    0, 1, shuffle=Shuffle("500B", 4), batch_size=12
)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Path(sys.argv[1]).write_text(
            "[\n"
            + ",\n".join(json.dumps(record) for record in make_records(Path(folder)))
            + "\n]\n"
        )

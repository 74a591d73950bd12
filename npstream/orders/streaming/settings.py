"""The settings of Streaming's orders, which StreamingDataset and its streams take there.

Tested in tests/orders/streaming/test_order.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from npstream._core.arguments import integer
from npstream.errors import short_repr
from npstream.orders.streaming.order import StreamingOrder
from npstream.orders.streaming.sampling import Weight
from npstream.orders.streaming.shuffle import ALGORITHMS

if TYPE_CHECKING:
    from npstream._core.typing import Int64

_MOST = (1 << 63) - 1
"""What fits into memory that workers share."""


class StreamingRun(NamedTuple):
    """What an order of Streaming keeps of a run wherever that goes on; states hold it."""

    num_canonical_nodes: int
    shuffle_seed: int
    initial_physical_nodes: int | None


@dataclass(frozen=True, slots=True)
class StreamingShuffle:
    """Settings of Streaming's orders, under Streaming's names and with its defaults.

    In a mixture, its sources are Streaming's streams. Settings of streams are mappings, from the
    names of sources; the mixture has no weights of its own.

    Parameters
    ----------
    shuffle_algo : {"py1e", "py1s", "py1br", "py2s", "naive"} or None, default: "py1e"
        None is ``shuffle=False`` there: the dataset's order, dealt out as Streaming does.
    num_canonical_nodes : int, optional
        Sequences that the order interleaves, each read by one node or shared out among several. By
        default 64 for each node with "py1s" and "py2s", else the number of nodes.
    shuffle_block_size : int, optional
        Samples that are shuffled together, in the orders that have blocks. By default
        ``max(4_000_000 // num_canonical_nodes, 262_144)``.
    shuffle_seed : int, optional
        What orders are drawn from. By default 9176. States know these numbers, and those that are
        left out are taken from one.
    partition_algo : {"relaxed", "orig"}, default: "relaxed"
        "relaxed" lets a run go on with any number of nodes that its global batch allows.
    initial_physical_nodes : int, optional
        The nodes that a run began with, which matter where it goes on: its state knows them.
    sampling_method : {"balanced", "fixed"}, default: "balanced"
        Whether each epoch picks its samples anew, or all epochs pick the same ones.
    sampling_granularity : int, default: 1
        Samples of a shard that are picked in a row where an epoch does not take all of a dataset.
    proportion : mapping of str to float, optional
        Of each source, its share in an epoch, on any scale.
    repeat : mapping of str to float, optional
        How often an epoch takes some sources; those without a weight it takes once.
    choose : mapping of str to int, optional
        How many samples an epoch takes of some sources.
    batching_method : {"random", "stratified", "per_stream", "device_per_stream"}, \
default: "random"
        Whether samples of all sources are shuffled as one; or each global batch has its share of
        every source; or is of one source; or each rank's batch is.

    Examples
    --------
    >>> ds = getfixture("example")
    >>> settings = StreamingShuffle("py1s", num_canonical_nodes=1, shuffle_seed=17)
    >>> [batch.ids.tolist() for batch in ds.iter(0, 1, batch_size=2, shuffle=settings)]
    [[0, 2], [1]]
    >>> settings = StreamingShuffle(repeat={"a": 2}, batching_method="per_stream")
    >>> mixed = npstream.mix({"a": ds, "b": ds})
    >>> [batch.ids.tolist() for batch in mixed.iter(0, 1, batch_size=3, shuffle=settings)]
    [[5, 4, 3], [2, 0, 1], [1, 2, 0]]
    """

    shuffle_algo: str | None = "py1e"
    num_canonical_nodes: int | None = None
    shuffle_block_size: int | None = None
    shuffle_seed: int | None = None
    partition_algo: str = "relaxed"
    initial_physical_nodes: int | None = None
    sampling_method: str = "balanced"
    sampling_granularity: int = 1
    proportion: Mapping[str, float] | None = None
    repeat: Mapping[str, float] | None = None
    choose: Mapping[str, int] | None = None
    batching_method: str = "random"

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if (number := getattr(self, name)) is not None:
                object.__setattr__(self, name, integer(name, number))
        if self.shuffle_seed is not None and self.shuffle_seed > _MOST:
            raise ValueError(f"shuffle_seed={self.shuffle_seed}: expected at most {_MOST}")
        for name in _WEIGHTS:
            if (weights := getattr(self, name)) is not None:
                object.__setattr__(self, name, _checked(name, weights))
        self.order([], [], 1, None, None)  # says what makes no sense

    @property
    def is_batched(self) -> bool:
        """Whether the order is made of batches, so that it depends on their size."""
        return self.batching_method != "random"

    def weights(self, names: Sequence[str]) -> list[Weight]:
        """Return the weights of sources with these names.

        For `npstream.iteration` only.

        Parameters
        ----------
        names : sequence of str
            The sources of a mixture; none of a dataset.

        Returns
        -------
        list of Weight

        Raises
        ------
        ValueError
            If a weight is of no source, or a source has several.
        """
        given = {name: getattr(self, name) or {} for name in _WEIGHTS}
        for name, weights in given.items():
            if unknown := weights.keys() - set(names):
                raise ValueError(
                    f"{name}={weights}: there is no source {min(map(repr, unknown))}, but "
                    f"{', '.join(map(repr, names)) or 'one dataset, and no npstream.mix of some'}"
                )
        made = []
        for source in names:
            own = {name: weights[source] for name, weights in given.items() if source in weights}
            if len(own) > 1:
                raise ValueError(
                    f"source {source!r} has one weight at most, not {' and '.join(own)}"
                )
            made.append(Weight(**own))
        return made

    def order(
        self,
        shards: Sequence[Int64],
        weights: Sequence[Weight],
        batch_size: int,
        epoch_size: int | None,
        run: StreamingRun | None,
    ) -> StreamingOrder:
        """Return the orders of streams, or those of a run that goes on.

        For `npstream.iteration` only.

        Parameters
        ----------
        shards : sequence of ndarray of int64
            Of each stream, the samples of its shards.
        weights : sequence of Weight
            Those of the streams.
        batch_size : int
            Samples in a batch of a rank.
        epoch_size : int or None
            Samples in an epoch; None for those that the streams have.
        run : StreamingRun or None
            What a state says of the run that goes on.

        Returns
        -------
        StreamingOrder
        """
        given = {name: getattr(self, name) for name in self.__slots__ if name not in _WEIGHTS}
        given |= {} if run is None else run._asdict()
        known = {name: value for name, value in given.items() if value is not None}
        return StreamingOrder(
            shards=shards, weights=weights, batch_size=batch_size, epoch_size=epoch_size,
            shuffle=self.shuffle_algo is not None, **known,
        )  # fmt: skip


_COUNTS = (
    "num_canonical_nodes", "shuffle_block_size", "shuffle_seed", "initial_physical_nodes",
    "sampling_granularity",
)  # fmt: skip

_WEIGHTS = ("proportion", "repeat", "choose")

_NUMBERS = (int, float, np.integer, np.floating)


def _checked(name: str, weights: Any) -> dict[str, float]:
    """Return weights of sources by name, or say what is wrong with them."""
    if not isinstance(weights, Mapping):
        raise TypeError(f"{name}={weights!r}: expected numbers by source, as in {{'web': 2}}")
    for source, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, _NUMBERS):
            raise TypeError(f"{name} of source {source!r} is {weight!r}: expected a number")
        if not 0 <= weight < math.inf:
            raise ValueError(f"{name} of source {source!r} is {weight}: expected 0 or more")
        if name == "choose" and weight != int(weight):
            raise TypeError(f"choose of source {source!r} is {weight}: expected whole samples")
    number = int if name == "choose" else float
    return {source: number(weight) for source, weight in weights.items()}


def streaming_shuffle(shuffle: Any) -> StreamingShuffle:
    """Return the order of Streaming that the argument ``shuffle`` of an iteration asks for.

    Raises
    ------
    TypeError, ValueError
        If it asks for none; these say what ``shuffle`` may be.
    """
    if isinstance(shuffle, StreamingShuffle):
        return shuffle
    expected = (
        "expected False, True, an npstream.Shuffle, an npstream.StreamingShuffle, or the name "
        f"of an order of Streaming, {', '.join(map(repr, ALGORITHMS))}"
    )
    if not isinstance(shuffle, str):
        raise TypeError(f"shuffle={short_repr(shuffle)}: {expected}")
    if shuffle not in ALGORITHMS:
        raise ValueError(f"shuffle={short_repr(shuffle)}: {expected}")
    return StreamingShuffle(shuffle)

"""Provide `StreamingShuffle`, the settings of Streaming's orders.

Tested in tests/orders/streaming/test_order.py.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from npstream._core.arguments import integer
from npstream.errors import short_repr
from npstream.orders.streaming.order import StreamingOrder
from npstream.orders.streaming.sampling import Weight
from npstream.orders.streaming.shuffle import SHUFFLE_ALGORITHMS

if TYPE_CHECKING:
    from npstream._core.typing import Int64

_MAX_SEED = (1 << 63) - 1
"""The largest seed: workers share it as an int64."""


class StreamingRun(NamedTuple):
    """Settings of a training run that stay the same when the run resumes; states contain them."""

    num_canonical_nodes: int
    shuffle_seed: int
    initial_physical_nodes: int | None

    def pack(self) -> bytes:
        """Return the settings as `RUN_BYTES` bytes, for processes that share them."""
        return _PACKED_RUN.pack(
            self.num_canonical_nodes, self.shuffle_seed, self.initial_physical_nodes or 0
        )

    @classmethod
    def unpack(cls, packed: bytes) -> StreamingRun:
        """Return the settings that `pack` converted to bytes."""
        canonical_nodes, seed, physical_nodes = _PACKED_RUN.unpack(packed)
        return cls(canonical_nodes, seed, physical_nodes or None)


_PACKED_RUN = struct.Struct("<qqq")

RUN_BYTES = _PACKED_RUN.size
"""The length of a packed `StreamingRun`."""


@dataclass(frozen=True, slots=True)
class StreamingShuffle:
    """Settings of the orders of MosaicML Streaming, with Streaming's names and defaults.

    The sources of a mixture are Streaming's streams. Settings of streams are mappings from the
    names of sources. The mixture itself must have no weights.

    Parameters
    ----------
    shuffle_algo : {"py1e", "py1s", "py1br", "py2s", "naive"} or None, default: "py1e"
        The shuffle. None is Streaming's ``shuffle=False``: the order of the dataset, divided among
        ranks like in Streaming.
    num_canonical_nodes : int, optional
        Number of sequences that the order interleaves. A node reads one or several of them, or
        several nodes share one. By default, a loaded state sets the number. Without a state, it is
        64 for each node with "py1s" and "py2s", else 1 for each node.
    shuffle_block_size : int, optional
        A number of samples; only "py1br" and "py1e" use it. "py1br" shuffles blocks of about this
        size. "py1e" moves a sample in a range of about this width. By default
        ``max(4_000_000 // num_canonical_nodes, 262_144)``.
    shuffle_seed : int, optional
        The seed of the order. By default, a loaded state sets it; without a state, it is 9176.
    partition_algo : {"relaxed", "orig"}, default: "relaxed"
        With "orig", the number of nodes must be a multiple or a divisor of `num_canonical_nodes`.
        With "relaxed", a run can also resume on another number of nodes that divides its global
        batch.
    initial_physical_nodes : int, optional
        The number of nodes with which the run began. A loaded state sets it if it is not given.
    sampling_method : {"balanced", "fixed"}, default: "balanced"
        "balanced" picks other samples in each epoch, "fixed" the same in all epochs.
    sampling_granularity : int, default: 1
        Consecutive samples of a shard that are picked together if an epoch takes only a part of a
        dataset.
    proportion : mapping of str to float, optional
        The share of each source in an epoch, relative to the shares of the other sources.
    repeat : mapping of str to float, optional
        How often an epoch takes a source. Sources without a weight are taken once.
    choose : mapping of str to int, optional
        How many samples an epoch takes of a source.
    batching_method : {"random", "stratified", "per_stream", "device_per_stream"}, \
default: "random"
        "random" shuffles the samples of all sources together. With "stratified", each global batch
        has its share of every source. With "per_stream", each global batch is of one source. With
        "device_per_stream", each batch of a rank is of one source.

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
        for name in _INTEGERS:
            if (number := getattr(self, name)) is not None:
                object.__setattr__(self, name, integer(name, number))
        if self.shuffle_seed is not None and self.shuffle_seed > _MAX_SEED:
            raise ValueError(f"shuffle_seed={self.shuffle_seed}: expected at most {_MAX_SEED}")
        for name in _WEIGHTS:
            if (weights := getattr(self, name)) is not None:
                object.__setattr__(self, name, _check_weights(name, weights))
        self.order([], [], 1, None, None)  # raises if a setting is invalid

    @property
    def is_batched(self) -> bool:
        """Whether the order depends on the batch size."""
        return self.batching_method != "random"

    def weights(self, names: Sequence[str]) -> list[Weight]:
        """Return the weights of sources with these names.

        For `npstream.iteration` only.

        Parameters
        ----------
        names : sequence of str
            The sources of a mixture; empty for a single dataset.

        Returns
        -------
        list of Weight
            One for each source.

        Raises
        ------
        ValueError
            If a weight names an unknown source, or a source has several weights.
        """
        settings = {name: getattr(self, name) or {} for name in _WEIGHTS}
        for name, weights in settings.items():
            if unknown := weights.keys() - set(names):
                if not names:
                    raise ValueError(
                        f"{name}={weights}: a single dataset has no weights: make an npstream.mix"
                    )
                raise ValueError(
                    f"{name}={weights}: there is no source {min(map(repr, unknown))}; the sources "
                    f"are {', '.join(map(repr, names))}"
                )
        result = []
        for source in names:
            weight = {
                name: weights[source] for name, weights in settings.items() if source in weights
            }
            if len(weight) > 1:
                raise ValueError(
                    f"source {source!r} has at most one weight, not {' and '.join(weight)}"
                )
            result.append(Weight(**weight))
        return result

    def order(
        self,
        shards: Sequence[Int64],
        weights: Sequence[Weight],
        batch_size: int,
        epoch_size: int | None,
        run: StreamingRun | None,
    ) -> StreamingOrder:
        """Return the order with these settings.

        The settings in `run` replace those of the same name. For `npstream.iteration` only.

        Parameters
        ----------
        shards : sequence of ndarray of int64
            For each stream, the number of samples of each shard.
        weights : sequence of Weight
            The weight of each stream.
        batch_size : int
            Samples in a batch of a rank.
        epoch_size : int or None
            Samples in an epoch; None for the size that the streams and weights give.
        run : StreamingRun or None
            The settings of the run, from a loaded state.

        Returns
        -------
        StreamingOrder
        """
        settings = {name: getattr(self, name) for name in self.__slots__ if name not in _WEIGHTS}
        settings |= {} if run is None else run._asdict()
        arguments = {name: value for name, value in settings.items() if value is not None}
        return StreamingOrder(
            shards=shards, weights=weights, batch_size=batch_size, epoch_size=epoch_size,
            shuffle=self.shuffle_algo is not None, **arguments,
        )  # fmt: skip


_INTEGERS = (
    "num_canonical_nodes", "shuffle_block_size", "shuffle_seed", "initial_physical_nodes",
    "sampling_granularity",
)  # fmt: skip

_WEIGHTS = ("proportion", "repeat", "choose")

_NUMBERS = (int, float, np.integer, np.floating)


def _check_weights(name: str, weights: Any) -> dict[str, float]:
    """Return weights as numbers by source; raise TypeError or ValueError if they are invalid."""
    if not isinstance(weights, Mapping):
        raise TypeError(f"{name}={weights!r}: expected a mapping, as in {{'web': 2}}")
    for source, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, _NUMBERS):
            raise TypeError(f"{name} of source {source!r} is {weight!r}: expected a number")
        if not 0 <= weight < math.inf:
            raise ValueError(f"{name} of source {source!r} is {weight}: expected at least 0")
        if name == "choose" and weight != int(weight):
            raise TypeError(f"choose of source {source!r} is {weight}: expected an integer")
    number = int if name == "choose" else float
    return {source: number(weight) for source, weight in weights.items()}


def streaming_shuffle(shuffle: Any) -> StreamingShuffle:
    """Return the StreamingShuffle for an iteration's argument ``shuffle``.

    Raises
    ------
    TypeError, ValueError
        If `shuffle` is neither a StreamingShuffle nor the name of a shuffle algorithm.
    """
    if isinstance(shuffle, StreamingShuffle):
        return shuffle
    expected = (
        "expected False, True, an npstream.Shuffle, an npstream.StreamingShuffle, or the name of a "
        f"shuffle of Streaming: {', '.join(map(repr, SHUFFLE_ALGORITHMS))}"
    )
    if not isinstance(shuffle, str):
        raise TypeError(f"shuffle={short_repr(shuffle)}: {expected}")
    if shuffle not in SHUFFLE_ALGORITHMS:
        raise ValueError(f"shuffle={short_repr(shuffle)}: {expected}")
    return StreamingShuffle(shuffle)

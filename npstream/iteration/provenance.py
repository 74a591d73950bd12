"""Provide `StepHistory`, the steps of a run, and `Provenance`, the samples that steps read.

Batch sizes and numbers of ranks may change in a run. A history has a `StepRange` for each change.
"""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.optional import import_optional
from npstream.errors import short_repr
from npstream.iteration.counter import EpochCursor
from npstream.iteration.partition import (
    LAST_BATCH_MODES,
    Gaps,
    merge_gaps,
    to_unskipped_position,
)
from npstream.iteration.ranks import Ranks
from npstream.iteration.state import OPTIONAL_SETTINGS, read_count, read_gaps
from npstream.orders.order import Shuffle

if TYPE_CHECKING:
    from npstream._core.typing import AnyArray, Bools, Int64
    from npstream.iteration.epochs import AnyEpochs
    from npstream.reading.source import Source

STEPS = "steps"
"""The key of the step ranges in a state."""


class StepRange(NamedTuple):
    """Consecutive steps of an epoch, with the same batch size and the same ranks.

    A range ends where the next one begins. So it can extend into later epochs, which are read
    from their first sample on.

    Attributes
    ----------
    epoch, step : int
        The first step of the range: its epoch, and its number in the epoch.
    position : int
        The epoch position where its batch begins.
    global_batch : int
        Samples of all ranks in a batch.
    world, ranks_per_node : int
        Ranks that read different samples, and their number on each node.
    last : str
        How the last batch of the epoch is made; see `npstream.iteration.partition.Partition`.
    gaps : tuple
        The skipped ranges of the epoch.
    restart : int
        The `restart` of `EpochCursor`.
    """

    epoch: int
    step: int
    position: int
    global_batch: int
    world: int = 1
    ranks_per_node: int = 1
    last: str = "repeat"
    gaps: Gaps = ()
    restart: int = 0

    def in_epoch(self, epoch: int) -> StepRange:
        """Return this range, or the range of a later epoch that is read in the same way."""
        if epoch == self.epoch:
            return self
        return self._replace(epoch=epoch, step=0, position=0, gaps=(), restart=0)

    def steps_to(self, cursor: EpochCursor) -> tuple[int, bool]:
        """Return the first step from a later cursor on, and True if its batch begins there."""
        start, stop = (
            to_unskipped_position(position, self.gaps)
            for position in (self.position, cursor.position)
        )
        batches, remainder = divmod(stop - start, self.global_batch)
        return self.step + batches + (remainder > 0), remainder == 0

    def cursor(self, context: bytes) -> EpochCursor:
        """Return the cursor where the first step begins."""
        return EpochCursor(self.epoch, self.position, self.gaps, self.restart, context)

    def to_json(self) -> dict[str, Any]:
        """Return the range as a state holds it."""
        values = self._asdict()
        values["gaps"] = [list(gap) for gap in self.gaps]
        return values


class StepHistory:
    """The step ranges of a run, in the order of epochs and steps. It does not change.

    Parameters
    ----------
    ranges : iterable of StepRange
    """

    def __init__(self, ranges: Iterable[StepRange] = ()) -> None:
        self.ranges = tuple(sorted(ranges))

    def with_loop(self, cursor: EpochCursor, batches: StepRange) -> StepHistory:
        """Return the history with a loop added that begins at `cursor`.

        Parameters
        ----------
        cursor : EpochCursor
            The cursor where the loop begins.
        batches : StepRange
            A range with the batch size and the ranks of the loop, at any position.
        """
        step, is_aligned = 0, True
        previous = self._previous_range(cursor)
        if previous is not None:
            step, is_aligned = previous.steps_to(cursor)
        elif cursor.position:  # the state has no history: assume batches of this size
            start = batches.in_epoch(cursor.epoch)._replace(gaps=cursor.gaps)
            step, _ = start.steps_to(cursor)
        loop_range = batches._replace(
            epoch=cursor.epoch,
            step=step,
            position=cursor.position,
            gaps=cursor.gaps,
            restart=cursor.restart,
        )
        # A loop may read steps again, for instance after `set_epoch`. Its batches replace those
        # that the history has from this step of the epoch on.
        ranges = [r for r in self.ranges if r.epoch != cursor.epoch or r.step < step]
        is_continued = (
            previous is not None
            and is_aligned
            and _batch_fields(previous) == _batch_fields(loop_range)
        )
        return StepHistory(ranges if is_continued else [*ranges, loop_range])

    def find(self, epoch: int, step: int) -> StepRange | None:
        """Return the range of a step; None if it is unknown."""
        number = bisect_right(self.ranges, (epoch, step), key=itemgetter(0, 1))
        return self.ranges[number - 1].in_epoch(epoch) if number else None

    def _previous_range(self, cursor: EpochCursor) -> StepRange | None:
        """Return the range that a loop from the cursor would continue; None if there is none."""
        number = bisect_right(self.ranges, (cursor.epoch, cursor.position), key=itemgetter(0, 2))
        if not cursor.position:  # the loop reads the epoch from its first step on
            number = bisect_right(self.ranges, cursor.epoch - 1, key=itemgetter(0))
        return self.ranges[number - 1].in_epoch(cursor.epoch) if number else None


def read_history(state: Mapping[str, Any]) -> StepHistory:
    """Return the history of a state; it is empty if the state was saved by an older release.

    Raises
    ------
    ValueError
        If the state is damaged.
    """
    entries = state.get(STEPS, [])
    if not isinstance(entries, list | tuple):
        raise ValueError(
            f"this state is damaged: {STEPS} is {short_repr(entries)}; expected a list"
        )
    return StepHistory(_read_range(entry) for entry in entries)


def _read_range(entry: Any) -> StepRange:
    """Return a step range of a state; raise ValueError if it is damaged."""
    if not isinstance(entry, Mapping) or set(entry) != set(StepRange._fields):
        raise ValueError(
            f"this state is damaged: {STEPS} has {short_repr(entry)}; expected a dict of "
            f"{', '.join(StepRange._fields)}"
        )
    last = entry["last"]
    if last not in LAST_BATCH_MODES:
        raise ValueError(f"this state is damaged: last={short_repr(last)} in {STEPS}")
    minimums = {"global_batch": 1, "world": 1, "ranks_per_node": 1}
    counts = {
        key: read_count(entry, key, minimums.get(key, 0))
        for key in StepRange._fields
        if key not in ("last", "gaps")
    }
    return StepRange(**counts, last=last, gaps=merge_gaps(read_gaps(entry, "gaps")))


def _batch_fields(step_range: StepRange) -> tuple[Any, ...]:
    """Return the fields that stay equal while a range continues: not epoch, step and position."""
    return step_range[3:]


_MAX_REPR_ROWS = 10
"""Maximum number of rows in a repr."""


@dataclass(frozen=True, eq=False)
class Provenance:
    """The samples that steps of a run read: a table with a row for each sample of each rank.

    The steps are in the order of the request. The rows of a step are sorted by rank, and those of a
    rank are in the order of its batch.

    Attributes
    ----------
    steps : ndarray of int64, shape (n,)
        The step in the epoch, counted from 0.
    ranks : ndarray of int64, shape (n,)
        The rank that read the sample. With ``replication``, ranks that read the same samples count
        as one.
    ids : ndarray of int64, shape (n,)
        The sample's number in the dataset or mixture, as in ``Batch.ids``.
    repeated : ndarray of bool, shape (n,)
        True for samples that only filled up the last batch of the epoch.
    shards : ndarray of int64, shape (n,)
        The number of the sample's shard; see `Dataset.shards`.
    rows : ndarray of int64, shape (n,)
        The sample's position in its shard.
    files : ndarray of str, shape (n,)
        The name of the shard's file in the dataset's directory. If there are several datasets, its
        path or URL.
    sources : ndarray of str, shape (n,)
        The name of the source in a mixture or concatenation; empty for a single dataset.

    Examples
    --------
    >>> batches = getfixture("example").iter(0, 1, batch_size=2, shuffle=True)
    >>> [batch.ids.tolist() for batch in batches]
    [[2, 0], [1, 2]]
    >>> batches.samples_of(1, epoch=0)
    <Provenance: 2 samples>
      steps  ranks  ids  repeated  shards  rows            files
          1      0    1     False       0     1  shard.00000.mds
          1      0    2      True       0     2  shard.00000.mds
    """

    steps: Int64
    ranks: Int64
    ids: Int64
    repeated: Bools
    shards: Int64
    rows: Int64
    files: AnyArray
    sources: AnyArray

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        if not any(self.sources):
            del columns["sources"]
        cells = [
            [name, *map(str, values[:_MAX_REPR_ROWS].tolist())] for name, values in columns.items()
        ]
        widths = [max(map(len, texts)) for texts in cells]
        lines = [f"<Provenance: {quantity(len(self), 'sample')}>"]
        for row in zip(*cells, strict=True):
            padded = [text.rjust(width) for text, width in zip(row, widths, strict=True)]
            lines.append("  " + "  ".join(padded))
        if len(self) > _MAX_REPR_ROWS:
            lines.append(f"  ... {len(self) - _MAX_REPR_ROWS:,} more")
        return "\n".join(lines)

    def to_pandas(self) -> Any:
        """Return the table as a DataFrame of pandas, with a column for each attribute."""
        pandas = import_optional("pandas", "pandas", "pandas")
        return pandas.DataFrame({field.name: getattr(self, field.name) for field in fields(self)})


def trace_steps(
    epochs: AnyEpochs,
    source: Source,
    history: StepHistory,
    context: bytes,
    epoch: int,
    steps: Sequence[int],
) -> Provenance:
    """Return the samples of steps of an epoch.

    Parameters
    ----------
    epochs : AnyEpochs
    source : Source
    history : StepHistory
    context : bytes
        The context of the run's cursors.
    epoch : int
    steps : sequence of int
        Numbers of steps in the epoch.

    Raises
    ------
    IndexError
        If the epoch has no such step.
    ValueError
        If the history does not know the step.
    """
    pieces: list[tuple[Int64, Int64, Int64, Bools]] = []
    for step in steps:
        step_range = history.find(epoch, step)
        if step_range is None:
            first = history.ranges[0]
            raise ValueError(
                f"step {step} of epoch {epoch} is unknown: the run's state knows the steps from "
                f"step {first.step} of epoch {first.epoch} on"
            )
        pieces += _read_step(epochs, step_range, context, step)
    numbers, ranks, ids, repeated = (
        (np.concatenate(column) for column in zip(*pieces, strict=True))
        if pieces
        else (*np.zeros((3, 0), np.int64), np.zeros(0, bool))
    )
    shards, rows = source.locate(ids)
    unique, inverse = np.unique(shards, return_inverse=True)
    names = [source.index.name(shard) for shard in unique.tolist()]
    members = source.members
    sources = [""] * len(ids)
    if members:
        bounds = np.cumsum([member.selection.size for member in members])
        sources = [members[k].name for k in np.searchsorted(bounds, ids, side="right").tolist()]
    files = np.array(names, object)[inverse]
    return Provenance(
        numbers, ranks, ids, repeated, shards, rows, files.astype(str), np.array(sources, str)
    )


def _read_step(
    epochs: AnyEpochs, step_range: StepRange, context: bytes, step: int
) -> list[tuple[Int64, Int64, Int64, Bools]]:
    """Return, for each rank, the columns `steps`, `ranks`, `ids` and `repeated` of `Provenance`."""
    cursor, batch = step_range.cursor(context), step - step_range.step
    batch_size = step_range.global_batch // step_range.world
    pieces, batches = [], 0
    for rank in range(step_range.world):
        ranks = Ranks(rank, step_range.world, step_range.ranks_per_node)
        part = epochs.part(cursor, ranks, batch_size, step_range.last)
        batches = max(batches, part.batches)
        if batch < part.batches:
            ids, repeated = part.lookup(range(batch, batch + 1))
            pieces.append((np.full_like(ids, step), np.full_like(ids, rank), ids, repeated))
    if batch >= batches:
        steps = quantity(step_range.step + batches, "step")
        raise IndexError(f"step {step}: epoch {step_range.epoch} has {steps}, counted from 0")
    return pieces


def step_numbers(steps: int | Iterable[int]) -> list[int]:
    """Return the numbers of steps that a user gave as one number or several.

    Raises
    ------
    TypeError
        If they are not integers.
    IndexError
        If one is negative.
    """
    items: Any = [steps] if hasattr(steps, "__index__") else steps
    if not isinstance(items, Iterable) or isinstance(items, str | bytes):
        raise TypeError(f"steps={short_repr(steps)}: expected a number of a step, or several")
    numbers = []
    for step in items:
        if isinstance(step, bool) or not hasattr(step, "__index__"):
            raise TypeError(f"a step is {short_repr(step)}: expected an integer")
        numbers.append(operator.index(step))
        if numbers[-1] < 0:
            raise IndexError(f"step {numbers[-1]}: steps of an epoch are counted from 0")
    return numbers


def settings_of_run(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `Dataset.iter` for the run of a state, as rank 0.

    Raises
    ------
    ValueError
        If the state does not hold the steps of its run, or the values of all its settings.
    """
    history = read_history(state) if isinstance(state, Mapping) else StepHistory()
    if not history.ranges:
        raise ValueError(
            f"the state has no {STEPS!r}: it was saved before the first batch, or by an older "
            "release of npstream, or is not a state; make an iteration with the settings of the "
            "run, load the state, and call its samples_of(step)"
        )
    if found := [f"{key}=" for key in OPTIONAL_SETTINGS if state.get(key) is not None]:
        raise ValueError(
            f"the run had {' and '.join(found)}, whose values the state does not hold: make an "
            "iteration with the settings of the run, load the state, and call its samples_of(step)"
        )
    newest = history.ranges[-1]
    settings: dict[str, Any] = {
        "rank": 0, "world": newest.world, "ranks_per_node": newest.ranks_per_node,
        "global_batch_size": newest.global_batch, "last": newest.last,
        "epoch_size": state.get("epoch_size"), "shuffle": False,
    }  # fmt: skip
    shuffle = state.get("shuffle")
    if not isinstance(shuffle, Mapping):
        return {**settings, "seed": state.get("seed", 0)}
    if shuffle.get("order") in ("native", "mixture"):
        stratified = shuffle.get("stratified", False)
        native = Shuffle(shuffle.get("block"), shuffle.get("lanes"), stratified)
        return {**settings, "seed": state.get("seed", 0), "shuffle": native}
    return {**settings, "shuffle": _streaming_shuffle(state, shuffle)}


def _streaming_shuffle(state: Mapping[str, Any], shuffle: Mapping[str, Any]) -> Any:
    """Return the StreamingShuffle of a run whose samples are in an order of Streaming."""
    from npstream.orders.streaming.settings import StreamingShuffle

    names = {field.name for field in fields(StreamingShuffle)}
    settings = {name: value for name, value in shuffle.items() if name in names}
    weights: dict[str, Any] = {}
    for source, weight in (state.get("weights") or {}).items():
        for name, value in weight.items():
            if value is not None:
                weights.setdefault(name, {})[source] = value
    return StreamingShuffle(shuffle_algo=shuffle.get("order"), **settings, **weights)

"""Provide the run of a mixture, which determines the sample at each position, and resume it.

A run has the lanes and blocks of each source. They never change after the source was added. A run
also has the shares of sources, with the units at which the shares change. Saved states contain the
run, so the names of `MixtureRun`, `RunSource` and `RunPhase` fields are part of a stored format.

Tested in tests/mixture/test_epochs.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from npstream._core.arguments import quantity
from npstream.errors import short_repr
from npstream.iteration.state import (
    MAX_COUNT,
    STATE_VERSION,
    TRAINER_EPOCH,
    difference_message,
    read_count,
    require_keys,
    state_version,
)
from npstream.mixture.passes import Stored
from npstream.mixture.shares import (
    MixtureSpec,
    apportion,
    block_counts,
    block_length,
    min_block_length,
    next_coprime,
)
from npstream.mixture.stream import STREAM_VERSION, Course, Phase
from npstream.orders.order import LANES, MIN_LANE_BLOCK_BYTES, Shuffle

if TYPE_CHECKING:
    from npstream.iteration.ranks import Ranks

_CONTINUING_HINT = "load mix.continuing(state) of this mixture to continue with it"

_VERSION_1 = "1:"
"""Prefix that `load_run` adds to fingerprints of states of version 1.

Present sources then get new fingerprints. Removed sources keep the old ones, with the prefix.
"""

_MAX_LISTED = 5
"""Maximum number of names in a message."""

BATCHINGS = ("random", "stratified", "per_stream", "device_per_stream")
"""How sources are drawn; see `npstream.Mixture.iter`."""


COSTS_OF_ANOTHER_MIXTURE = {"hash": None}
"""The value of "balance" in a state from `continue_run`.

The new mixture has costs of its own, whose hash is not yet known.
"""


@dataclass(frozen=True, slots=True)
class Batches:
    """The batch size of each source: samples of one rank, or of all ranks if `is_global`."""

    sizes: tuple[int, ...] = ()
    is_global: bool = False

    def rank_sizes(self, ranks: Ranks) -> tuple[int, ...]:
        """Return the sizes of a rank's batches."""
        if not self.is_global:
            return self.sizes
        if uneven := [size for size in self.sizes if size % ranks.world]:
            raise ValueError(
                f"global_batch_size={uneven[0]}: expected a multiple of {ranks.world}, the number "
                "of ranks"
            )
        return tuple(size // ranks.world for size in self.sizes)

    def global_sizes(self, ranks: Ranks) -> tuple[int, ...]:
        """Return the sizes of global batches."""
        return tuple(size * ranks.world for size in self.rank_sizes(ranks))


@dataclass(frozen=True, slots=True)
class RunSource:
    """A source of a run: `block` is the number of rows of a block in one lane."""

    name: str
    samples: int
    fingerprint: str
    lanes: int
    block: int


@dataclass(frozen=True, slots=True)
class RunPhase:
    """The shares of sources from unit `start` on, exact in blocks of `length` units."""

    start: int
    length: int
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class MixtureRun:
    """The run of a mixture.

    Parameters
    ----------
    batching : str
    lanes : int
        A multiple of the lanes of each source.
    block : int
        Bytes that are shuffled together; 0 for all.
    sources : tuple of RunSource
        All sources that the run has drawn from, also removed ones.
    sizes : tuple of int, optional
        If each batch is of one source: the samples in a batch of each source. A size is None while
        it is unknown: `continue_run` does not know the sizes of new sources.
    grain : int
        Positions of the largest batch. A mixture can change only at multiples of it, so that no
        batch is split.
    stretches : tuple of RunPhase
        The phases of the run: the shares of sources, with the units at which they change.
    size : int
        Positions in an epoch.
    epoch, offset : int
        The first epoch of this size, and the position in the stream where it begins.
    since : int
        Index of the first of `stretches` that is of the current mixture.
    """

    batching: str
    lanes: int
    block: int
    sources: tuple[RunSource, ...]
    sizes: tuple[int | None, ...] | None
    grain: int
    stretches: tuple[RunPhase, ...]
    size: int
    epoch: int = 0
    offset: int = 0
    since: int = 0

    @property
    def is_even(self) -> bool:
        """Whether the batches of all sources have the same size."""
        return self.sizes is None or len(set(self.sizes)) == 1

    @property
    def width(self) -> int:
        """Number of positions of a unit."""
        return 1 if self.sizes is None else self.grain

    @property
    def stream_lanes(self) -> int:
        """Number of lanes of the stream of units."""
        return 1 if self.batching == "per_stream" else self.lanes

    @property
    def active_sources(self) -> list[str]:
        """Names of the sources that the run draws from now."""
        shares = self.stretches[-1].shares
        return [s.name for s, share in zip(self.sources, shares, strict=True) if share]

    def stream_position(self, epoch: int, position: int) -> int:
        """Convert a position in an epoch to a position in the stream."""
        if epoch < self.epoch:
            raise ValueError(
                f"epoch {epoch}: the mixture changed in epoch {self.epoch}, and earlier epochs "
                "cannot be read with this mixture"
            )
        return self.offset + (epoch - self.epoch) * self.size + position

    def course(self, seed: int) -> Course:
        """Return the settings of the run's stream."""
        names = [source.name for source in self.sources]
        phases = [
            Phase(
                stretch.start,
                tuple(block_counts(names, self._unit_shares(stretch.shares), stretch.length)),
            )
            for stretch in self.stretches
        ]
        return Course(
            seed=seed,
            lanes=self.stream_lanes,
            sources=tuple(Stored(s.name, s.samples, s.lanes, s.block) for s in self.sources),
            phases=tuple(phases),
            batches=None if self.sizes is None else tuple(s or self.grain for s in self.sizes),
            across=self.batching == "per_stream",
        )

    def schedule_phases(self, spec: MixtureSpec, begin: int = 0) -> tuple[RunPhase, ...]:
        """Return the phases of a mixture's schedule, from unit `begin` on."""
        # Phases start at multiples of this number of units: at whole batches, or at lane 0.
        multiple = self.grain if self.batching == "stratified" else self.stream_lanes
        starts: dict[int, tuple[float, ...]] = {}
        for position, shares in spec.schedule:
            start = -(-position // (self.width * multiple)) * multiple
            by_name = dict(zip(spec.names, shares, strict=True))
            run_shares = tuple(by_name.get(source.name, 0.0) for source in self.sources)
            # Of several phases before `begin`, the last one overwrites the others.
            starts[max(start, begin)] = run_shares
            if self.batching == "stratified":
                _check_shares(spec, shares, self.grain)
        return tuple(
            RunPhase(start, self._block_length(spec, shares), shares)
            for start, shares in starts.items()
        )

    def _block_length(self, spec: MixtureSpec, shares: tuple[float, ...]) -> int:
        """Return the number of units in which shares are exact."""
        if self.batching == "stratified":
            return self.grain
        lanes = self.stream_lanes
        if spec.block is None:
            return block_length(self._unit_shares(shares), lanes)
        return next_coprime(spec.block, lanes)

    def _unit_shares(self, shares: tuple[float, ...]) -> list[float]:
        """Convert shares of samples to shares of units."""
        sizes = self.sizes or [1] * len(shares)
        units = [share / (size or self.grain) for share, size in zip(shares, sizes, strict=True)]
        total = math.fsum(units)
        return [unit / total for unit in units]

    def to_json(self) -> dict[str, Any]:
        """Return the run as plain JSON."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        # These lists become tuples, because torch.distributed.checkpoint splits up lists of dicts.
        data |= {name: tuple(data[name]) for name in ("sources", "stretches")}
        return {"version": list(STREAM_VERSION), **data}

    @classmethod
    def from_json(cls, data: Any) -> MixtureRun:
        """Return the run of a result of `to_json`; raise ValueError if it is invalid."""
        names = [field.name for field in fields(cls)]
        if not isinstance(data, Mapping):
            raise ValueError(f"this state is damaged: mixture is {short_repr(data)}")
        require_keys(data, ("version", *names))
        if data["version"] != list(STREAM_VERSION):
            raise ValueError(
                f"the state is of a mixture's order of version {short_repr(data['version'])}; "
                f"this release of npstream has version {list(STREAM_VERSION)}"
            )
        values = {name: data[name] for name in names}
        values["sources"] = tuple(_source(source) for source in _list_in(data, "sources"))
        values["stretches"] = tuple(
            _phase(stretch, len(values["sources"])) for stretch in _list_in(data, "stretches")
        )
        for key, minimum in {"lanes": 1, "block": 0, "grain": 1, "size": 0, "offset": 0}.items():
            read_count(data, key, minimum)
        if not 0 <= read_count(data, "since") < len(values["stretches"]):
            raise ValueError(f"this state is damaged: since is {data['since']}")
        read_count(data, "epoch")
        if values["sizes"] is not None:
            values["sizes"] = tuple(_list_in(data, "sizes"))
            if len(values["sizes"]) != len(values["sources"]):
                raise ValueError(f"this state is damaged: sizes are {short_repr(data['sizes'])}")
            for size in values["sizes"]:
                if size is not None:
                    read_count({"sizes": size}, "sizes", 1)
        if values["batching"] not in BATCHINGS:
            raise ValueError(f"this state is damaged: batching is {short_repr(values['batching'])}")
        run = cls(**values)
        run._check_lanes()
        return run

    def _check_lanes(self) -> None:
        """Raise ValueError unless lanes and phases satisfy the conditions of `Course`."""
        if invalid := [source.lanes for source in self.sources if self.lanes % source.lanes]:
            raise ValueError(
                f"this state is damaged: a source has {quantity(invalid[0], 'lane')}, which do not "
                f"divide the mixture's {quantity(self.lanes, 'lane')}"
            )
        lanes = self.stream_lanes
        starts = [phase.start for phase in self.stretches]
        invalid = [math.gcd(phase.length, lanes) not in (1, lanes) for phase in self.stretches]
        if starts[0] or starts != sorted(set(starts)) or any(invalid):
            raise ValueError(f"this state is damaged: stretches {short_repr(self.stretches)}")


def _list_in(data: Mapping[str, Any], key: str) -> list[Any]:
    """Return a list of a state; raise ValueError if it is empty or no list."""
    if not isinstance(data[key], list | tuple) or not data[key]:
        raise ValueError(
            f"this state is damaged: {key} is {short_repr(data[key])}; expected a list"
        )
    return list(data[key])


def _require_fields(data: Any, kind: type[RunSource | RunPhase]) -> None:
    """Raise ValueError unless a part of a state has the fields of a class."""
    names = [field.name for field in fields(kind)]
    if not isinstance(data, Mapping) or any(name not in data for name in names):
        raise ValueError(f"this state is damaged: {short_repr(data)}; expected {', '.join(names)}")


def _source(data: Any) -> RunSource:
    """Return a source of a state."""
    _require_fields(data, RunSource)
    name, fingerprint = data["name"], data["fingerprint"]
    if not isinstance(name, str) or not isinstance(fingerprint, str):
        raise ValueError(f"this state is damaged: it has the source {short_repr(data)}")
    samples, block = read_count(data, "samples"), read_count(data, "block")
    return RunSource(name, samples, fingerprint, read_count(data, "lanes", 1), block)


def _phase(data: Any, sources: int) -> RunPhase:
    """Return a phase of a state with `sources` sources."""
    _require_fields(data, RunPhase)
    shares = _list_in(data, "shares")
    is_valid = len(shares) == sources and all(
        isinstance(share, int | float) and 0 <= share <= 1 for share in shares
    )
    if not is_valid or not 0.99 < math.fsum(shares) < 1.01:
        raise ValueError(f"this state is damaged: it has the shares {short_repr(shares)}")
    return RunPhase(read_count(data, "start"), read_count(data, "length", 1), tuple(shares))


def new_run(
    spec: MixtureSpec,
    shuffle: Shuffle | None,
    batching: str,
    batches: Batches,
    size: int | None,
    ranks: Ranks,
) -> MixtureRun:
    """Return a new run, without the fingerprints of sources.

    Parameters
    ----------
    spec : MixtureSpec
    shuffle : Shuffle, optional
        None reads sources in their own order.
    batching : str
        One of `BATCHINGS`.
    batches : Batches
    size : int, optional
        Samples in an epoch; by default those of all sources. `epoch_size` may round it down.
    ranks : Ranks
    """
    block, lanes = resolve_shuffle(spec, shuffle)
    is_batched = batching in ("per_stream", "device_per_stream")
    if batching == "random":
        sizes: tuple[int, ...] = (1,)
    elif batching == "device_per_stream":
        sizes = batches.rank_sizes(ranks)
    else:
        sizes = batches.global_sizes(ranks)
    grain = max(sizes)
    if batching == "stratified":
        lanes = math.gcd(lanes, grain)
    run = MixtureRun(
        batching=batching,
        lanes=lanes,
        block=block,
        sources=assign_lanes(spec, range(len(spec.names)), shuffle, block, lanes),
        sizes=sizes if is_batched else None,
        grain=grain,
        stretches=(),
        size=0,
    )
    return replace(run, stretches=run.schedule_phases(spec), size=epoch_size(spec, size, run))


def resolve_shuffle(spec: MixtureSpec, shuffle: Shuffle | None) -> tuple[int, int]:
    """Return the bytes that are shuffled together (0 for all), and the lanes of a mixture."""
    shuffle = Shuffle(None) if shuffle is None else shuffle.resolve(sum(spec.nbytes))
    return int(shuffle.block or 0), shuffle.lanes or 1


def assign_lanes(
    spec: MixtureSpec, numbers: Iterable[int], shuffle: Shuffle | None, block: int, lanes: int
) -> tuple[RunSource, ...]:
    """Return sources with their lanes and blocks.

    Parameters
    ----------
    spec : MixtureSpec
    numbers : iterable of int
        The numbers of the sources in `spec`.
    shuffle : Shuffle, optional
        None reads sources in their own order.
    block, lanes : int
        Bytes that the mixture shuffles together, or 0 for all, and its number of lanes.
    """
    total = max(sum(spec.nbytes), 1)
    # If the user gives a large number of lanes, a lane's part of the block can be smaller than
    # MIN_LANE_BLOCK_BYTES. Then this part is the minimum.
    min_block = min(MIN_LANE_BLOCK_BYTES, max(block // lanes, 1))
    # Choose among the divisors of `lanes` that are default numbers of lanes or powers of two.
    divisors = [c for c in range(1, lanes + 1) if lanes % c == 0]
    lane_counts = [c for c in divisors if c in LANES or c & c - 1 == 0] + [lanes]
    sources = []
    for number in numbers:
        name, samples, nbytes = spec.names[number], spec.sizes[number], max(spec.nbytes[number], 1)
        source_block = max(block * nbytes // total, min_block)
        # A source within one block needs one lane only, unless the user gave a number of lanes.
        if shuffle is None or block == 0 or (nbytes <= source_block and shuffle.lanes is None):
            sources.append(RunSource(name, samples, "", 1, 0 if shuffle is None else samples))
            continue
        max_lanes = min(source_block // min_block, samples)
        count = max(c for c in lane_counts if c == 1 or c <= max_lanes)
        sources.append(
            RunSource(name, samples, "", count, -(-source_block * samples // (nbytes * count)))
        )
    return tuple(sources)


def epoch_size(spec: MixtureSpec, size: int | None, run: MixtureRun) -> int:
    """Return the positions in an epoch.

    If batches must not be split, the result is rounded down to a multiple of `run.grain`, but is at
    least one batch. Otherwise a given `size` is not changed. The default is the samples of all
    sources, rounded down to a multiple of the lanes unless there are fewer samples than lanes.
    """
    samples = sum(spec.sizes) if size is None else size
    if run.batching == "random":
        is_default = size is None and samples >= run.lanes
        return samples - samples % run.lanes if is_default else samples
    if size is not None and size < run.grain:
        raise ValueError(
            f"epoch_size={size}: with batching={run.batching!r} an epoch has whole batches, of "
            f"{quantity(run.grain, 'sample')} each"
        )
    return max(samples // run.grain, 1) * run.grain


def _check_shares(spec: MixtureSpec, shares: tuple[float, ...], batch_size: int) -> None:
    """Raise ValueError unless a global batch holds each source, and no sample twice."""
    for name, samples, share, count in zip(
        spec.names, spec.sizes, shares, apportion(shares, batch_size), strict=True
    ):
        if count == 0:
            raise ValueError(
                f"source {name!r} has {share:.3g} of the weight, and a global batch of "
                f"{quantity(batch_size, 'sample')} holds no sample of it: give "
                f"global_batch_size={min_block_length(shares)}"
            )
        if count > samples:
            raise ValueError(
                f"source {name!r} has {quantity(samples, 'sample')}, and a global batch of "
                f"{quantity(batch_size, 'sample')} would hold {count:,} of it: give it less "
                "weight, or use smaller batches"
            )


# Resuming a run, with the same mixture or with another one


def load_run(state: Mapping[str, Any]) -> MixtureRun:
    """Return the run of a state; fingerprints of version 1 get the prefix `_VERSION_1`."""
    run = MixtureRun.from_json(state["mixture"])
    if state_version(state) == STATE_VERSION:
        return run
    sources = [replace(s, fingerprint=_VERSION_1 + s.fingerprint) for s in run.sources]
    return replace(run, sources=tuple(sources))


def resume_run(run: MixtureRun, new: MixtureRun, spec: MixtureSpec) -> MixtureRun:
    """Return the run of a state, resumed with a mixture.

    Parameters
    ----------
    run : MixtureRun
        The run of the state.
    new : MixtureRun
        A new run of the mixture.
    spec : MixtureSpec

    Raises
    ------
    ValueError
        If the runs do not fit. The message names the difference.
    """
    _check_batches(run, new)
    if run.lanes > max(*LANES, new.lanes):
        raise ValueError(f"this state is damaged: it has {quantity(run.lanes, 'lane')}")
    if set(run.active_sources) != set(spec.names):
        raise ValueError(
            f"the state is of sources {_list_names(run.active_sources)}; this mixture has "
            f"{_list_names(spec.names)}: {_CONTINUING_HINT}"
        )
    run_sources = {source.name: source for source in run.sources}
    for number, name in enumerate(spec.names):
        _check_samples(run_sources[name], spec, number)
    run = with_fingerprints(run, spec)
    begin = run.stretches[run.since].start
    if run.stretches[run.since :] != run.schedule_phases(spec, begin):
        raise ValueError(
            "the state is of other weights, or of another block, than this mixture: "
            f"{_CONTINUING_HINT}"
        )
    if run.sizes is None or new.sizes is None:
        return run
    sizes_by_name = dict(zip(spec.names, new.sizes, strict=True))
    sizes = tuple(
        sizes_by_name.get(source.name) if size is None else size
        for source, size in zip(run.sources, run.sizes, strict=True)
    )
    for source, size in zip(run.sources, sizes, strict=True):
        if size is not None and sizes_by_name.get(source.name, size) != size:
            raise ValueError(
                f"the state has batches of {quantity(size, 'sample')} of source {source.name!r}; "
                f"this iteration has {sizes_by_name[source.name]}: use the batch size of the state"
            )
    run = replace(run, sizes=sizes)
    # Block lengths depend on batch sizes, which `continue_run` did not know for new sources.
    return replace(run, stretches=(*run.stretches[: run.since], *run.schedule_phases(spec, begin)))


def continue_run(spec: MixtureSpec, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state with which a run continues with another mixture.

    Sources of the run, identified by name, continue their passes. New sources begin.

    Parameters
    ----------
    spec : MixtureSpec
        The other mixture.
    state : mapping
        The state of an iteration over any mixture.

    Raises
    ------
    ValueError
        If the state is of no mixture, or if a source holds other samples than the run's source of
        the same name.
    """
    require_keys(
        state, ("version", "mixture", "epoch", "position", "shuffle", "epoch_size", "skipped")
    )
    if "workers" in state:
        raise ValueError(
            "this is the state of one of several workers: use npstream.torch.DataLoader, whose "
            "states are of all workers"
        )
    if state["version"] != state_version(state):
        raise ValueError(difference_message("version", state["version"], STATE_VERSION))
    run = load_run(state)
    epoch, position = (read_count(state, key) for key in ("epoch", "position"))
    stream_position = run.stream_position(epoch, position)
    if position % run.grain:
        raise ValueError(
            f"position {position} is within a batch of {quantity(run.grain, 'position')}: a "
            "mixture can change only between batches"
        )
    shuffle: Shuffle | None = None
    if (state_shuffle := state["shuffle"]) is not None:
        shuffle = Shuffle(
            state_shuffle["block"],
            state_shuffle["lanes"],
            state_shuffle.get("stratified", False),
        )
    run_sources = {source.name: source for source in run.sources}
    for number, name in enumerate(spec.names):
        if name in run_sources:
            _check_samples(run_sources[name], spec, number)
    new_numbers = [number for number, name in enumerate(spec.names) if name not in run_sources]
    new_sources = assign_lanes(spec, new_numbers, shuffle, run.block, run.lanes)
    unit = stream_position // run.width
    earlier_phases = [
        replace(phase, shares=phase.shares + (0.0,) * len(new_sources))
        for phase in run.stretches
        if phase.start < unit
    ]
    if run.sizes is not None:
        size = run.sizes[0] if run.is_even else None
        run = replace(run, sizes=run.sizes + (size,) * len(new_sources))
    run = with_fingerprints(replace(run, sources=run.sources + new_sources), spec)
    run = replace(
        run,
        stretches=(*earlier_phases, *run.schedule_phases(spec, unit)),
        since=len(earlier_phases),
        size=epoch_size(spec, state["epoch_size"], run),
    )
    updates: dict[str, Any] = {}
    if state.get("balance") is not None:
        updates["balance"] = COSTS_OF_ANOTHER_MIXTURE
    if position >= run.size:
        epoch, position = epoch + 1, 0
        updates["skipped"] = []
        if state.get(TRAINER_EPOCH) is not None:
            updates[TRAINER_EPOCH] = read_count(state, TRAINER_EPOCH, -MAX_COUNT) + 1
    run = replace(run, epoch=epoch, offset=stream_position - position)
    return {
        **state, **updates, "version": STATE_VERSION, "mixture": run.to_json(), "epoch": epoch,
        "position": position,
    }  # fmt: skip


def with_fingerprints(run: MixtureRun, spec: MixtureSpec) -> MixtureRun:
    """Return a run with new fingerprints of the sources in `spec`; other sources keep theirs."""
    fingerprints = dict(zip(spec.names, spec.fingerprints, strict=True))
    sources = [
        replace(source, fingerprint=fingerprints[source.name](STATE_VERSION))
        if source.name in fingerprints
        else source
        for source in run.sources
    ]
    return replace(run, sources=tuple(sources))


def _check_batches(run: MixtureRun, new: MixtureRun) -> None:
    """Raise ValueError unless both runs make the same kind and size of batches."""
    if run.batching != new.batching:
        raise ValueError(
            f"the state is of batching={run.batching!r}; this iteration has "
            f"batching={new.batching!r}: use the setting of the state"
        )
    if run.grain != new.grain:
        name = "batch_size" if run.batching == "device_per_stream" else "global_batch_size"
        raise ValueError(
            f"the state is of {name}={run.grain}; this iteration has {new.grain}: with "
            f"batching={run.batching!r} it must stay the same"
        )


def _check_samples(source: RunSource, spec: MixtureSpec, number: int) -> None:
    """Raise ValueError unless a source holds the same samples as in the run."""
    if source.samples != spec.sizes[number]:
        change = f"has {quantity(spec.sizes[number], 'sample')}, and had {source.samples:,}"
    elif source.fingerprint != _current_fingerprint(source, spec, number):
        change = "holds other samples, or in another order"
    else:
        return
    raise ValueError(
        f"source {source.name!r} {change}: select the same samples in the same way, or give the "
        "source another name, so that its passes start again"
    )


def _current_fingerprint(source: RunSource, spec: MixtureSpec, number: int) -> str:
    """Return the fingerprint of source `number`, in the version of the run's fingerprint."""
    if source.fingerprint.startswith(_VERSION_1):
        return _VERSION_1 + spec.fingerprints[number](1)
    return spec.fingerprints[number](STATE_VERSION)


def _list_names(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(map(repr, names[:_MAX_LISTED])) + more

"""What a run over a mixture is of, from its beginning on; and how it goes on with another one.

A run is what positions mean: the lanes and blocks of each source, which stay as they were when the
run met it, and from which unit on sources are drawn by which shares. All of it stands in states.

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
    MixtureOf,
    apportioned,
    block_counts,
    block_length,
    coprime_from,
    least_length,
)
from npstream.mixture.stream import STREAM_VERSION, Course, Phase
from npstream.orders.order import LANES, MIN_LANE_BLOCK_BYTES, Shuffle

if TYPE_CHECKING:
    from npstream.iteration.ranks import Ranks

_CONTINUE = "mix.continuing(state), of this mixture, returns a state that goes on with it"

_OLD = "1:"
"""Marks fingerprints that are those of states of version 1, which sources that are gone keep."""

_LISTED = 5
"""Names that a message lists."""

BATCHINGS = ("random", "stratified", "per_stream", "device_per_stream")
"""What sources are drawn for: samples; those of a global batch; global batches; ranks' batches."""


@dataclass(frozen=True, slots=True)
class Batches:
    """Sizes of batches, of each source: of a rank's, or of those of all ranks."""

    sizes: tuple[int, ...] = ()
    of_all_ranks: bool = False

    def per_rank(self, ranks: Ranks) -> tuple[int, ...]:
        """Return the sizes of a rank's batches."""
        if not self.of_all_ranks:
            return self.sizes
        if uneven := [size for size in self.sizes if size % ranks.world]:
            raise ValueError(
                f"global_batch_size={uneven[0]}: expected a multiple of {ranks.world}, the number "
                "of ranks"
            )
        return tuple(size // ranks.world for size in self.sizes)

    def whole(self, ranks: Ranks) -> tuple[int, ...]:
        """Return the sizes of global batches."""
        return tuple(size * ranks.world for size in self.per_rank(ranks))


@dataclass(frozen=True, slots=True)
class RunSource:
    """A source as a run knows it; its lanes, and the rows of a block in one."""

    name: str
    samples: int
    fingerprint: str
    lanes: int
    block: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """From which unit on sources have which shares, exact in blocks of how many units."""

    start: int
    length: int
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class MixtureRun:
    """What positions of a run mean.

    Parameters
    ----------
    batching : str
    lanes, block : int
        What the lanes of sources divide; and bytes that are shuffled together, 0 for all.
    sources : tuple of RunSource
        All that the run ever drew from.
    sizes : tuple of int, optional
        Where batches are drawn, the samples of each source in one; None while that is not known.
    grain : int
        Positions of a batch that must not be split: those of the largest.
    stretches : tuple of Stretch
    size : int
        Positions in an epoch.
    epoch, offset : int
        The first epoch of that size, and where in the stream it begins.
    since : int
        The first of the stretches that are of the mixture which the run goes on with.
    """

    batching: str
    lanes: int
    block: int
    sources: tuple[RunSource, ...]
    sizes: tuple[int | None, ...] | None
    grain: int
    stretches: tuple[Stretch, ...]
    size: int
    epoch: int = 0
    offset: int = 0
    since: int = 0

    @property
    def is_even(self) -> bool:
        """Whether batches of all sources are of one size."""
        return self.sizes is None or len(set(self.sizes)) == 1

    @property
    def width(self) -> int:
        """Positions of a unit."""
        return 1 if self.sizes is None else self.grain

    @property
    def stream_lanes(self) -> int:
        """Lanes that units are dealt to."""
        return 1 if self.batching == "per_stream" else self.lanes

    @property
    def present(self) -> list[str]:
        """Names of the sources that the run draws from by now."""
        shares = self.stretches[-1].shares
        return [s.name for s, share in zip(self.sources, shares, strict=True) if share]

    def reached(self, epoch: int, position: int) -> int:
        """Return the position in the stream of a position in an epoch."""
        if epoch < self.epoch:
            raise ValueError(f"epoch {epoch} was before the mixture changed, in epoch {self.epoch}")
        return self.offset + (epoch - self.epoch) * self.size + position

    def course(self, seed: int) -> Course:
        """Return what the run's stream depends on."""
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

    def going_by(self, of: MixtureOf, begin: int = 0) -> tuple[Stretch, ...]:
        """Return the stretches of a mixture's schedule, from a unit on."""
        grid = self.grain if self.batching == "stratified" else self.stream_lanes
        starts: dict[int, tuple[float, ...]] = {}
        for position, shares in of.schedule:
            start = -(-position // (self.width * grid)) * grid
            by_name = dict(zip(of.names, shares, strict=True))
            of_all = tuple(by_name.get(source.name, 0.0) for source in self.sources)
            starts[max(start, begin)] = of_all  # the last one that begins there
            if self.batching == "stratified":
                _check_shares(of, shares, self.grain)
        return tuple(
            Stretch(start, self._length(of, shares), shares) for start, shares in starts.items()
        )

    def _length(self, of: MixtureOf, shares: tuple[float, ...]) -> int:
        """Return the units in which shares are exact."""
        if self.batching == "stratified":
            return self.grain
        lanes = self.stream_lanes
        if of.block is None:
            return block_length(self._unit_shares(shares), lanes)
        return coprime_from(of.block, lanes)

    def _unit_shares(self, shares: tuple[float, ...]) -> list[float]:
        """Turn shares of samples into shares of units."""
        sizes = self.sizes or [1] * len(shares)
        units = [share / (size or self.grain) for share, size in zip(shares, sizes, strict=True)]
        whole = math.fsum(units)
        return [unit / whole for unit in units]

    def as_json(self) -> dict[str, Any]:
        """Return the run as plain JSON has it."""
        facts: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {"version": list(STREAM_VERSION), **facts}

    @classmethod
    def of_json(cls, facts: Any) -> MixtureRun:
        """Return the run that `as_json` had."""
        names = [each.name for each in fields(cls)]
        if not isinstance(facts, Mapping):
            raise ValueError(f"this state is damaged: mixture is {short_repr(facts)}")
        require_keys(facts, ("version", *names))
        if facts["version"] != list(STREAM_VERSION):
            raise ValueError(
                f"the state is of a mixture's order of version {short_repr(facts['version'])}; "
                f"this release of npstream has version {list(STREAM_VERSION)}"
            )
        known = {name: facts[name] for name in names}
        known["sources"] = tuple(_source(source) for source in _list_in(facts, "sources"))
        known["stretches"] = tuple(
            _stretch(stretch, len(known["sources"])) for stretch in _list_in(facts, "stretches")
        )
        for key, least in {"lanes": 1, "block": 0, "grain": 1, "size": 0, "offset": 0}.items():
            read_count(facts, key, least)
        if not 0 <= read_count(facts, "since") < len(known["stretches"]):
            raise ValueError(f"this state is damaged: since is {facts['since']}")
        read_count(facts, "epoch")
        if known["sizes"] is not None:
            known["sizes"] = tuple(_list_in(facts, "sizes"))
            if len(known["sizes"]) != len(known["sources"]):
                raise ValueError(f"this state is damaged: sizes are {short_repr(facts['sizes'])}")
            for size in known["sizes"]:
                if size is not None:
                    read_count({"sizes": size}, "sizes", 1)
        if known["batching"] not in BATCHINGS:
            raise ValueError(f"this state is damaged: batching is {short_repr(known['batching'])}")
        run = cls(**known)
        run._check_lanes()
        return run

    def _check_lanes(self) -> None:
        """Raise unless lanes and stretches are such that `Course` can have them."""
        if wrong := [source.lanes for source in self.sources if self.lanes % source.lanes]:
            raise ValueError(
                f"this state is damaged: a source has {quantity(wrong[0], 'lane')}, and all have "
                f"{self.lanes}"
            )
        lanes = self.stream_lanes
        starts = [stretch.start for stretch in self.stretches]
        shared = [math.gcd(stretch.length, lanes) not in (1, lanes) for stretch in self.stretches]
        if starts[0] or starts != sorted(set(starts)) or any(shared):
            raise ValueError(f"this state is damaged: stretches {short_repr(self.stretches)}")


def _list_in(facts: Mapping[str, Any], key: str) -> list[Any]:
    """Return a list of a state, which is not empty."""
    if not isinstance(facts[key], list) or not facts[key]:
        raise ValueError(
            f"this state is damaged: {key} is {short_repr(facts[key])}; expected a list"
        )
    return list(facts[key])


def _require_fields(facts: Any, kind: type[RunSource | Stretch]) -> None:
    """Raise unless this is a part of a state that has the fields of a class."""
    names = [each.name for each in fields(kind)]
    if not isinstance(facts, Mapping) or any(name not in facts for name in names):
        raise ValueError(f"this state is damaged: {short_repr(facts)}; expected {', '.join(names)}")


def _source(facts: Any) -> RunSource:
    """Return a source of a state."""
    _require_fields(facts, RunSource)
    name, fingerprint = facts["name"], facts["fingerprint"]
    if not isinstance(name, str) or not isinstance(fingerprint, str):
        raise ValueError(f"this state is damaged: it has the source {short_repr(facts)}")
    samples, block = read_count(facts, "samples"), read_count(facts, "block")
    return RunSource(name, samples, fingerprint, read_count(facts, "lanes", 1), block)


def _stretch(facts: Any, sources: int) -> Stretch:
    """Return a stretch of a state with so many sources."""
    _require_fields(facts, Stretch)
    shares = _list_in(facts, "shares")
    sound = len(shares) == sources and all(
        isinstance(share, int | float) and 0 <= share <= 1 for share in shares
    )
    if not sound or not 0.99 < math.fsum(shares) < 1.01:
        raise ValueError(f"this state is damaged: it has the shares {short_repr(shares)}")
    return Stretch(read_count(facts, "start"), read_count(facts, "length", 1), tuple(shares))


def new_run(
    of: MixtureOf,
    settings: Shuffle | None,
    batching: str,
    batches: Batches,
    size: int | None,
    ranks: Ranks,
) -> MixtureRun:
    """Return a run as it is from the beginning; fingerprints of sources are left out.

    Parameters
    ----------
    of : MixtureOf
    settings : Shuffle, optional
        None reads sources in their own order.
    batching : str
    batches : Batches
    size : int, optional
        Samples in an epoch.
    ranks : Ranks
    """
    block, lanes = resolve_shuffle(of, settings)
    is_batched = batching in ("per_stream", "device_per_stream")
    if batching == "random":
        sizes: tuple[int, ...] = (1,)
    elif batching == "device_per_stream":
        sizes = batches.per_rank(ranks)
    else:
        sizes = batches.whole(ranks)
    grain = max(sizes)
    if batching == "stratified":
        lanes = math.gcd(lanes, grain)
    run = MixtureRun(
        batching=batching,
        lanes=lanes,
        block=block,
        sources=lay_out_sources(of, range(len(of.names)), settings, block, lanes),
        sizes=sizes if is_batched else None,
        grain=grain,
        stretches=(),
        size=0,
    )
    return replace(run, stretches=run.going_by(of), size=epoch_size(of, size, run))


def resolve_shuffle(of: MixtureOf, settings: Shuffle | None) -> tuple[int, int]:
    """Return the bytes that are shuffled together, 0 for all, and the lanes of a mixture."""
    chosen = Shuffle(None) if settings is None else settings.resolve(sum(of.nbytes))
    return int(chosen.block or 0), chosen.lanes or 1


def lay_out_sources(
    of: MixtureOf, numbers: Iterable[int], settings: Shuffle | None, block: int, lanes: int
) -> tuple[RunSource, ...]:
    """Lay sources out in lanes and blocks of their own.

    Parameters
    ----------
    of : MixtureOf
    numbers : iterable of int
        Which sources.
    settings : Shuffle, optional
    block, lanes : int
        Those of the mixture.
    """
    total = max(sum(of.nbytes), 1)
    # Lanes that were asked for may be smaller than those that are chosen.
    least = min(MIN_LANE_BLOCK_BYTES, max(block // lanes, 1))
    choice = [c for c in range(1, lanes + 1) if lanes % c == 0 and (c in LANES or c & c - 1 == 0)]
    choice += [lanes]
    found = []
    for number in numbers:
        name, samples, nbytes = of.names[number], of.sizes[number], max(of.nbytes[number], 1)
        own = max(block * nbytes // total, least)
        if settings is None or block == 0 or (nbytes <= own and settings.lanes is None):
            found.append(RunSource(name, samples, "", 1, 0 if settings is None else samples))
            continue
        most = min(own // least, samples)
        count = max(c for c in choice if c == 1 or c <= most)
        found.append(RunSource(name, samples, "", count, -(-own * samples // (nbytes * count))))
    return tuple(found)


def epoch_size(of: MixtureOf, chosen: int | None, run: MixtureRun) -> int:
    """Return the positions in an epoch: whole batches, or whole rows of lanes if none is chosen."""
    samples = sum(of.sizes) if chosen is None else chosen
    if run.batching == "random":
        rest = samples % run.lanes if chosen is None and samples >= run.lanes else 0
        return samples - rest
    if chosen is not None and chosen < run.grain:
        raise ValueError(
            f"epoch_size={chosen}: with batching={run.batching!r} an epoch has whole batches, and "
            f"one takes {quantity(run.grain, 'sample')}"
        )
    return max(samples // run.grain, 1) * run.grain


def _check_shares(of: MixtureOf, shares: tuple[float, ...], whole: int) -> None:
    """Raise unless a global batch holds some of each source, and none of them twice."""
    for name, samples, share, count in zip(
        of.names, of.sizes, shares, apportioned(shares, whole), strict=True
    ):
        if count == 0:
            raise ValueError(
                f"source {name!r} has {share:.3g} of the weight, of which a global batch of "
                f"{quantity(whole, 'sample')} holds none: global_batch_size={least_length(shares)} "
                "would do"
            )
        if count > samples:
            raise ValueError(
                f"source {name!r} has {quantity(samples, 'sample')}, and a global batch of "
                f"{whole:,} is to hold {count} of it: give it less weight, or make batches smaller"
            )


# Going on with a mixture: the one of the state, or another one


def run_in(state: Mapping[str, Any]) -> MixtureRun:
    """Return the run of a state.

    What tells sources from others is said in the newest version, or marked as of an older one.
    """
    run = MixtureRun.of_json(state["mixture"])
    if state_version(state) == STATE_VERSION:
        return run
    sources = [replace(s, fingerprint=_OLD + s.fingerprint) for s in run.sources]
    return replace(run, sources=tuple(sources))


def adopt_run(run: MixtureRun, own: MixtureRun, of: MixtureOf) -> MixtureRun:
    """Return the run of a state as it goes on with a mixture.

    Parameters
    ----------
    run : MixtureRun
        That of the state.
    own : MixtureRun
        That of the mixture, if it began now.
    of : MixtureOf

    Raises
    ------
    ValueError
        If it cannot; it says what differs.
    """
    _check_batches(run, own)
    if run.lanes > max(*LANES, own.lanes):
        raise ValueError(f"this state is damaged: it has {quantity(run.lanes, 'lane')}")
    if set(run.present) != set(of.names):
        raise ValueError(
            f"the state is of sources {_some(run.present)}; this mixture has {_some(of.names)}: "
            f"{_CONTINUE}"
        )
    known = {source.name: source for source in run.sources}
    for number, name in enumerate(of.names):
        _check_same(known[name], of, number)
    run = with_fingerprints(run, of)
    begin = run.stretches[run.since].start
    if run.stretches[run.since :] != run.going_by(of, begin):
        raise ValueError(
            f"the state is of other weights, or of another block, than this mixture: {_CONTINUE}"
        )
    if run.sizes is None or own.sizes is None:
        return run
    here = dict(zip(of.names, own.sizes, strict=True))
    sizes = tuple(
        here.get(source.name) if size is None else size
        for source, size in zip(run.sources, run.sizes, strict=True)
    )
    for source, size in zip(run.sources, sizes, strict=True):
        if size is not None and here.get(source.name, size) != size:
            raise ValueError(
                f"the state is of batches of {quantity(size, 'sample')} of source {source.name!r}; "
                f"this iteration has {here[source.name]}: make it like that"
            )
    run = replace(run, sizes=sizes)
    # Blocks depend on sizes that were not known where the run was made to go on.
    return replace(run, stretches=(*run.stretches[: run.since], *run.going_by(of, begin)))


def continue_run(of: MixtureOf, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state with which a run goes on with another mixture.

    Sources that the run knows, by their names, go on in their passes; others begin.

    Parameters
    ----------
    of : MixtureOf
        What to go on with.
    state : mapping
        The state of an iteration over any mixture.

    Raises
    ------
    ValueError
        If it is none, or if a source holds other samples than the one of that name did.
    """
    require_keys(
        state, ("version", "mixture", "epoch", "position", "shuffle", "epoch_size", "skipped")
    )
    if "workers" in state:
        raise ValueError(
            "this is the state of one of several workers: those of npstream.torch.DataLoader are "
            "of all of them"
        )
    if state["version"] != state_version(state):
        raise ValueError(difference_message("version", state["version"], STATE_VERSION))
    run = run_in(state)
    epoch, position = (read_count(state, key) for key in ("epoch", "position"))
    reached = run.reached(epoch, position)
    if position % run.grain:
        raise ValueError(
            f"position {position} is within a batch, which takes "
            f"{quantity(run.grain, 'position')}: mixtures change between batches"
        )
    given = state["shuffle"]
    settings = None if given is None else Shuffle(given["block"], given["lanes"])
    known = {source.name: source for source in run.sources}
    for number, name in enumerate(of.names):
        if name in known:
            _check_same(known[name], of, number)
    new = [number for number, name in enumerate(of.names) if name not in known]
    added = lay_out_sources(of, new, settings, run.block, run.lanes)
    unit = reached // run.width
    past = [
        replace(stretch, shares=stretch.shares + (0.0,) * len(added))
        for stretch in run.stretches
        if stretch.start < unit
    ]
    if run.sizes is not None:
        size = run.sizes[0] if run.is_even else None
        run = replace(run, sizes=run.sizes + (size,) * len(added))
    run = with_fingerprints(replace(run, sources=run.sources + added), of)
    run = replace(
        run,
        stretches=(*past, *run.going_by(of, unit)),
        since=len(past),
        size=epoch_size(of, state["epoch_size"], run),
    )
    moved: dict[str, Any] = {}
    if position >= run.size:
        epoch, position = epoch + 1, 0
        moved["skipped"] = []
        if state.get(TRAINER_EPOCH) is not None:
            moved[TRAINER_EPOCH] = read_count(state, TRAINER_EPOCH, -MAX_COUNT) + 1
    run = replace(run, epoch=epoch, offset=reached - position)
    return {
        **state, **moved, "version": STATE_VERSION, "mixture": run.as_json(), "epoch": epoch,
        "position": position,
    }  # fmt: skip


def with_fingerprints(run: MixtureRun, of: MixtureOf) -> MixtureRun:
    """Return a run with the fingerprints of its sources; those that are gone keep theirs."""
    fingerprints = dict(zip(of.names, of.fingerprints, strict=True))
    sources = [
        replace(source, fingerprint=fingerprints[source.name](STATE_VERSION))
        if source.name in fingerprints
        else source
        for source in run.sources
    ]
    return replace(run, sources=tuple(sources))


def _check_batches(run: MixtureRun, own: MixtureRun) -> None:
    """Raise unless batches are drawn as they were."""
    if run.batching != own.batching:
        raise ValueError(
            f"the state is of batching={run.batching!r}; this iteration has "
            f"batching={own.batching!r}: make it like that"
        )
    if run.grain != own.grain:
        what = "batch_size" if run.batching == "device_per_stream" else "global_batch_size"
        raise ValueError(
            f"the state is of {what}={run.grain}; this iteration has {own.grain}: it must stay "
            f"the same with batching={run.batching!r}"
        )


def _check_same(known: RunSource, of: MixtureOf, number: int) -> None:
    """Raise unless a source holds the samples that it did."""
    if known.samples != of.sizes[number]:
        holds = f"has {quantity(of.sizes[number], 'sample')}, and had {known.samples:,}"
    elif known.fingerprint != _fingerprint_like(known, of, number):
        holds = "holds other samples, or in another order"
    else:
        return
    raise ValueError(
        f"source {known.name!r} {holds}: select them as was done then, or give the source another "
        "name, and its passes begin anew"
    )


def _fingerprint_like(known: RunSource, of: MixtureOf, number: int) -> str:
    """Return the fingerprint of a source, in the version of the one that is known."""
    if known.fingerprint.startswith(_OLD):
        return _OLD + of.fingerprints[number](1)
    return of.fingerprints[number](STATE_VERSION)


def _some(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return ", ".join(map(repr, found[:_LISTED])) + more

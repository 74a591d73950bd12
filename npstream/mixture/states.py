"""Whether a run may go on with a mixture, and how it does with another one.

Tested in tests/mixture/test_epochs.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from npstream.iteration.state import VERSION as STATE_VERSION
from npstream.iteration.state import count_in, require, version_of
from npstream.mixture.run import Run, Source, epoch_size, laid_out
from npstream.orders.order import LANES, Shuffle

if TYPE_CHECKING:
    from npstream.mixture.shares import MixtureOf

_CONTINUE = "mix.continuing(state), of this mixture, returns a state that goes on with it"

_OLD = "1:"
"""Marks fingerprints that are those of states of version 1, which sources that are gone keep."""

_LISTED = 5
"""Names that a message lists."""


def run_of(state: Mapping[str, Any]) -> Run:
    """Return the run of a state.

    What tells sources from others is said in the newest version, or marked as of an older one.
    """
    run = Run.of_json(state["mixture"])
    if version_of(state) == STATE_VERSION:
        return run
    sources = [replace(s, fingerprint=_OLD + s.fingerprint) for s in run.sources]
    return replace(run, sources=tuple(sources))


def adopted(run: Run, own: Run, of: MixtureOf) -> Run:
    """Return the run of a state as it goes on with a mixture.

    Parameters
    ----------
    run : Run
        That of the state.
    own : Run
        That of the mixture, if it began now.
    of : MixtureOf

    Raises
    ------
    ValueError
        If it cannot; it says what differs.
    """
    _check_batches(run, own)
    if run.lanes > max(*LANES, own.lanes):
        raise ValueError(f"this state is damaged: it has {run.lanes} lanes")
    if set(run.present) != set(of.names):
        raise ValueError(
            f"the state is of sources {_some(run.present)}; this mixture has {_some(of.names)}: "
            f"{_CONTINUE}"
        )
    known = {source.name: source for source in run.sources}
    for number, name in enumerate(of.names):
        _check_same(known[name], of, number)
    run = named(run, of)
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
        if here.get(source.name, size) != size:
            raise ValueError(
                f"the state is of batches of {size} samples of source {source.name!r}; this "
                f"iteration has {here[source.name]}: make it like that"
            )
    run = replace(run, sizes=sizes)
    # Blocks depend on sizes that were not known where the run was made to go on.
    return replace(run, stretches=(*run.stretches[: run.since], *run.going_by(of, begin)))


def continuing(of: MixtureOf, state: Mapping[str, Any]) -> dict[str, Any]:
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
    require(state, ("mixture", "epoch", "position", "skipped", "shuffle", "epoch_size"))
    if "workers" in state:
        raise ValueError(
            "this is the state of one of several workers: those of npstream.torch.DataLoader are "
            "of all of them"
        )
    run = run_of(state)
    epoch, position = (count_in(state, key) for key in ("epoch", "position"))
    reached = run.reached(epoch, position)
    if position % run.grain:
        raise ValueError(
            f"position {position} is within a batch, which takes {run.grain} positions: mixtures "
            "change between batches"
        )
    given = state["shuffle"]
    settings = None if given is None else Shuffle(given["block"], given["lanes"])
    known = {source.name: source for source in run.sources}
    for number, name in enumerate(of.names):
        if name in known:
            _check_same(known[name], of, number)
    new = [number for number, name in enumerate(of.names) if name not in known]
    added = laid_out(of, new, settings, run.block, run.lanes)
    unit = reached // run.width
    past = [
        replace(stretch, shares=stretch.shares + (0.0,) * len(added))
        for stretch in run.stretches
        if stretch.start < unit
    ]
    if run.sizes is not None:
        size = run.sizes[0] if run.is_even else None
        run = replace(run, sizes=run.sizes + (size,) * len(added))
    run = named(replace(run, sources=run.sources + added), of)
    run = replace(
        run,
        stretches=(*past, *run.going_by(of, unit)),
        since=len(past),
        size=epoch_size(of, state["epoch_size"], run),
    )
    skipped = state["skipped"]
    if position >= run.size:
        epoch, position, skipped = epoch + 1, 0, []
    run = replace(run, epoch=epoch, offset=reached - position)
    return {
        **state, "version": STATE_VERSION, "mixture": run.as_json(), "epoch": epoch,
        "position": position, "skipped": skipped,
    }  # fmt: skip


def named(run: Run, of: MixtureOf) -> Run:
    """Return a run with the fingerprints of its sources; those that are gone keep theirs."""
    fingerprints = dict(zip(of.names, of.fingerprints, strict=True))
    sources = [
        replace(source, fingerprint=fingerprints[source.name](STATE_VERSION))
        if source.name in fingerprints
        else source
        for source in run.sources
    ]
    return replace(run, sources=tuple(sources))


def _check_batches(run: Run, own: Run) -> None:
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


def _check_same(known: Source, of: MixtureOf, number: int) -> None:
    """Raise unless a source holds the samples that it did."""
    if known.samples != of.sizes[number]:
        holds = f"has {of.sizes[number]} samples, and had {known.samples}"
    elif known.fingerprint != _fingerprint_like(known, of, number):
        holds = "holds other samples, or in another order"
    else:
        return
    raise ValueError(
        f"source {known.name!r} {holds}: select them as was done then, or give the source another "
        "name, and its passes begin anew"
    )


def _fingerprint_like(known: Source, of: MixtureOf, number: int) -> str:
    """Return the fingerprint of a source, in the version of the one that is known."""
    if known.fingerprint.startswith(_OLD):
        return _OLD + of.fingerprints[number](1)
    return of.fingerprints[number](STATE_VERSION)


def _some(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return ", ".join(map(repr, found[:_LISTED])) + more

"""The state of an iteration, as plain JSON: what it is an iteration of, and how far it came.

Everything but the position is compared when a state is loaded: a position means nothing in
another order. It counts samples of all ranks from the epoch's first, so it does not depend on how
many ranks, workers or samples a batch there are.

Tested in tests/iteration/test_resumable.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.arguments import integer, quantity
from npstream.errors import shown
from npstream.formats.index import Index
from npstream.indexing.concatenation import Concatenation
from npstream.indexing.mask import Mask
from npstream.indexing.selection import Selection
from npstream.iteration.counter import MAX_GAPS, EpochCursor
from npstream.iteration.partition import merge_gaps

if TYPE_CHECKING:
    from npstream.reading.source import Source

MAX_COUNT = 1 << 62
"""No number in a state is as large, so that sums of them are numbers of 64 bits."""

STATE_VERSION = 2
"""Names the form of states. They are read for ever; those of version 1 tell datasets apart by
another fingerprint than `Index.fingerprint`."""

_VERSIONS = (1, STATE_VERSION)

TRAINER_EPOCH = "trainer_epoch"
"""The key of what a trainer calls the epoch of a state."""

_FIXES = {
    "samples": "open the dataset, and select the view, as it was",
    "dataset": "its shards are others; open the dataset as it was",
    "view": "its samples are others, or in another order; select them as was done then",
}


class DatasetFingerprint:
    """What tells a dataset from others, in states of each version; computed once.

    Names of shards, and how well they are compressed, do not matter.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._known: dict[int, str] = {}

    def __call__(self, version: int) -> str:
        """Return the fingerprint in states of a version."""
        if version not in self._known:
            index = self.source.index
            make = _first_fingerprint if version == 1 else Index.fingerprint
            self._known[version] = make(index)
        return self._known[version]


class ViewFingerprint:
    """What tells a view, and its dataset, from others: both fingerprints, with a dash between.

    Parameters
    ----------
    dataset : DatasetFingerprint
    selection : Selection
        The same samples, selected in another way, may be another view.
    """

    def __init__(self, dataset: DatasetFingerprint, selection: Selection) -> None:
        self._dataset, self._selection = dataset, selection
        self._view = ""

    def __call__(self, version: int) -> str:
        """Return the fingerprint in states of a version."""
        if not self._view:
            digest = hashlib.blake2b(digest_size=8)
            _add(digest, self._dataset.source.stored(self._selection).__reduce__()[1])
            self._view = digest.hexdigest()
        return f"{self._dataset(version)}-{self._view}"


def _first_fingerprint(index: Index) -> str:
    """Return the fingerprint of a dataset in states of version 1."""
    dataset = hashlib.blake2b(digest_size=8)
    for facts in (index.starts, index.nbytes, index.compressed, index.schema_ids):
        _add(dataset, facts)
    _add(dataset, repr(index.schemas))
    if dtypes := index.annotations.dtypes:
        _add(dataset, tuple(sorted(dtypes.items())))
    for shard in range(len(index)):
        if hashes := index.files(shard).data.hashes:
            _add(dataset, (shard, *sorted(hashes.items())))
    return dataset.hexdigest()


def make_state(settings: Mapping[str, Any], cursor: EpochCursor) -> dict[str, Any]:
    """Return the state of an iteration with these settings."""
    return {
        "version": STATE_VERSION,
        **settings,
        "epoch": cursor.epoch,
        "position": cursor.position,
        "skipped": [list(gap) for gap in cursor.gaps],
    }


def read_cursor(
    state: Mapping[str, Any], settings_in: Callable[[int], Mapping[str, Any]]
) -> EpochCursor:
    """Return where a state says to go on.

    Parameters
    ----------
    state : mapping
    settings_in : callable
        Returns the settings of the iteration as a state of some version has them.

    Raises
    ------
    ValueError
        If it is of an iteration over something else, or in another order.
    """
    version = state_version(state)
    expected = {"version": version, **settings_in(version)}
    require_keys(state, (*expected, "epoch", "position", "skipped"))
    for key, here in expected.items():
        if state[key] != here:
            raise ValueError(difference_message(key, state[key], here))
    epoch, position = (read_count(state, key) for key in ("epoch", "position"))
    gaps = merge_gaps(read_gaps(state))
    if len(gaps) > MAX_GAPS:
        raise ValueError(
            f"an epoch without {quantity(len(gaps), 'stretch')}: at most {MAX_GAPS} can be skipped"
        )
    return EpochCursor(epoch, position, gaps)


def state_version(state: Any) -> int:
    """Return the version of a state; the newest if the state has another one, or none."""
    version = state.get("version") if isinstance(state, Mapping) else None
    return STATE_VERSION if version not in _VERSIONS else int(version)


def read_count(state: Mapping[str, Any], key: str, least: int = 0, bound: int = MAX_COUNT) -> int:
    """Return a number of a state, or say that it is none."""
    try:
        found = integer(key, state[key])
    except TypeError:
        found = least - 1
    if not least <= found < bound:
        raise ValueError(
            f"this state is damaged: {key}={shown(state[key])}; expected an integer from "
            f"{least} to {bound - 1}"
        )
    return found


def read_gaps(state: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Yield the stretches that a state leaves out, or say what is wrong with them."""
    said = state["skipped"]
    if not isinstance(said, list | tuple):
        raise ValueError(f"this state is damaged: skipped is {shown(said)}; expected a list")
    for pair in said:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError(
                f"this state is damaged: skipped has {shown(pair)}; expected a start and a stop"
            )
        ends = {"start": pair[0], "stop": pair[1]}
        yield read_count(ends, "start"), read_count(ends, "stop")


def require_keys(state: Any, keys: Iterable[str]) -> None:
    """Raise unless this is a state that has keys."""
    if not isinstance(state, Mapping):
        raise TypeError(f"a state is a dict, as state_dict() returns it, not {shown(state)}")
    if missing := [key for key in keys if key not in state]:
        hint = ""
        if "sample_in_epoch" in state:
            hint = (
                "; it looks like one of Streaming, with which an iteration goes on that has its "
                "order, as in shuffle='py1e'"
            )
        raise ValueError(f"this is no state of an iteration: {', '.join(missing)} missing{hint}")


def difference_message(key: str, there: Any, here: Any) -> str:
    """Say how a state differs, and what to do."""
    if key == "version":
        return (
            f"the state has version {shown(there)}; this release of npstream reads versions "
            f"{' and '.join(map(str, _VERSIONS))}"
        )
    if key == "fingerprint":
        known = there.split("-") if isinstance(there, str) else []
        key = "view" if known[:1] == here.split("-")[:1] else "dataset"
        return f"the state is of another {key}: {_FIXES[key]}"
    if key == "samples":
        return f"the state is of a view of {shown(there)} samples; this has {here}: {_FIXES[key]}"
    return (
        f"the state is of {key}={shown(there)}; this iteration has {key}={here!r}: make it like "
        "that"
    )


def _add(digest: hashlib.blake2b, fact: Any) -> None:
    """Add what something is made of to a hash; each fact is told from its neighbors."""
    if isinstance(fact, np.ndarray):
        digest.update(f"{fact.dtype.str}{fact.shape}".encode())
        digest.update(np.ascontiguousarray(fact).view(np.uint8).data)
    elif isinstance(fact, tuple):
        digest.update(f"({len(fact)}".encode())
        for part in fact:
            _add(digest, part)
    elif isinstance(fact, Mask | Selection | Concatenation):
        _add(digest, fact.__reduce__()[1])
    elif hasattr(fact, "identity"):  # an order, which is computed from a few numbers
        digest.update(f"{fact.identity()};".encode())
    else:  # a number, a range or a text
        digest.update(f"{fact!r};".encode())

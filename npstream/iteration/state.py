"""Provide the saved state of an iteration, as plain JSON: its settings and its position.

A position is meaningless in another order. So loading a state compares all its settings with those
of the iteration. A position counts the samples of all ranks since the beginning of the epoch, so it
does not depend on the number of ranks and workers, or on the batch size.

Tested in tests/iteration/test_resumable.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.arguments import integer, quantity
from npstream.errors import short_repr
from npstream.formats.index import Index
from npstream.indexing.concatenation import Concatenation
from npstream.indexing.mask import Mask
from npstream.indexing.selection import Selection
from npstream.iteration.counter import MAX_GAPS, EpochCursor
from npstream.iteration.partition import merge_gaps

if TYPE_CHECKING:
    from npstream.reading.source import Source

MAX_COUNT = 1 << 62
"""Numbers in a state are below this, so that sums of two fit in 64 bits."""

STATE_VERSION = 2
"""Version of the format of states. All versions stay readable; version 1 has another fingerprint of
datasets than `Index.fingerprint`."""

_VERSIONS = (1, STATE_VERSION)

OPTIONAL_SETTINGS = ("valid", "balance")
"""Keys that only the states of iterations with these settings have."""

SETTINGS_HASH = "settings_hash"
"""The key of the hash of the settings of a state.

`torch.distributed.checkpoint` loads only keys that are also in the state of the new run. If the old
run had more settings, the hash differs.
"""

TRAINER_EPOCH = "trainer_epoch"
"""The key of the trainer's own number for the epoch of a state."""

_FIXES = {
    "samples": "open the same dataset, and select the same view",
    "dataset": "it has other shards; open the same dataset",
    "view": "it has other samples, or another order; select the same samples in the same way",
}


class DatasetFingerprint:
    """The fingerprint that identifies a dataset in states, by version; each is computed once.

    It does not depend on the names of shards or their compression ratio.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._fingerprints: dict[int, str] = {}

    def __call__(self, version: int) -> str:
        """Return the fingerprint in states of a version."""
        if version not in self._fingerprints:
            index = self.source.index
            make = _version_1_fingerprint if version == 1 else Index.fingerprint
            self._fingerprints[version] = make(index)
        return self._fingerprints[version]


class ViewFingerprint:
    """The fingerprint that identifies a view in states: ``{dataset}-{selection}``.

    Parameters
    ----------
    dataset : DatasetFingerprint
    selection : Selection
        The same samples selected in another way may have another fingerprint.
    """

    def __init__(self, dataset: DatasetFingerprint, selection: Selection) -> None:
        self._dataset, self._selection = dataset, selection
        self._view = ""

    def __call__(self, version: int) -> str:
        """Return the fingerprint in states of a version."""
        if not self._view:
            digest = hashlib.blake2b(digest_size=8)
            samples = self._dataset.source.to_sample_numbers(self._selection)
            _hash_value(digest, samples.__reduce__()[1])
            self._view = digest.hexdigest()
        return f"{self._dataset(version)}-{self._view}"


def _version_1_fingerprint(index: Index) -> str:
    """Return the fingerprint of a dataset in states of version 1."""
    index = index.original
    dataset = hashlib.blake2b(digest_size=8)
    for array in (index.starts, index.nbytes, index.compressed, index.schema_ids):
        _hash_value(dataset, array)
    _hash_value(dataset, repr(index.schemas))
    if dtypes := index.annotations.dtypes:
        _hash_value(dataset, tuple(sorted(dtypes.items())))
    for shard in range(len(index)):
        if hashes := index.files(shard).data.hashes:
            _hash_value(dataset, (shard, *sorted(hashes.items())))
    return dataset.hexdigest()


def make_state(settings: Mapping[str, Any], cursor: EpochCursor) -> dict[str, Any]:
    """Return the state of an iteration with these settings."""
    return {
        "version": STATE_VERSION,
        **settings,
        SETTINGS_HASH: _hash_settings(settings),
        "epoch": cursor.epoch,
        "position": cursor.position,
        "skipped": [list(gap) for gap in cursor.gaps],
    }


def read_cursor(
    state: Mapping[str, Any], settings_of_version: Callable[[int], Mapping[str, Any]]
) -> EpochCursor:
    """Return the cursor of a state.

    Parameters
    ----------
    state : mapping
    settings_of_version : callable
        Takes a version, and returns the settings of the iteration as states of that version have
        them.

    Raises
    ------
    ValueError
        If the state is of an iteration over another view, or in another order.
    """
    version = state_version(state)
    settings = settings_of_version(version)
    expected = {"version": version, **settings}
    keys = [key for key in expected if key not in OPTIONAL_SETTINGS]
    require_keys(state, (*keys, "epoch", "position", "skipped"))
    for key, current in expected.items():
        if state.get(key) != current:
            raise ValueError(difference_message(key, state.get(key), current))
    for key in OPTIONAL_SETTINGS:
        if state.get(key) is not None and key not in expected:
            raise ValueError(difference_message(key, state[key], None))
    if version == STATE_VERSION and state.get(SETTINGS_HASH) not in (
        None,
        _hash_settings(settings),
    ):
        raise ValueError(
            "the state is of an iteration with other settings, and does not hold all of them: give "
            "the settings of the run that saved the state, such as valid= and balance="
        )
    epoch, position = (read_count(state, key) for key in ("epoch", "position"))
    gaps = merge_gaps(read_gaps(state))
    if len(gaps) > MAX_GAPS:
        raise ValueError(
            f"the state skips {quantity(len(gaps), 'range')} of an epoch: at most {MAX_GAPS} can "
            "be skipped"
        )
    return EpochCursor(epoch, position, gaps)


def _hash_settings(settings: Mapping[str, Any]) -> str:
    """Return a hash of the settings that a state holds."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def require_within_epoch(cursor: EpochCursor, size: int) -> None:
    """Raise ValueError if the cursor of a state is beyond the end of its epoch.

    Parameters
    ----------
    cursor : EpochCursor
    size : int
        Samples in the epoch.
    """
    ends = {
        "position": cursor.position,
        "skipped": max((stop for _, stop in cursor.gaps), default=0),
    }
    for key, end in ends.items():
        if end > size:
            raise ValueError(
                f"this state is damaged: {key} reaches sample {end:,} of an epoch of "
                f"{quantity(size, 'sample')}; load a state as state_dict() returned it"
            )


def state_version(state: Any) -> int:
    """Return the version of a state, or the newest version if the state's is missing or unknown."""
    version = state.get("version") if isinstance(state, Mapping) else None
    return STATE_VERSION if version not in _VERSIONS else int(version)


def read_count(state: Mapping[str, Any], key: str, minimum: int = 0, bound: int = MAX_COUNT) -> int:
    """Return an integer of a state; raise ValueError unless it is in range(minimum, bound)."""
    try:
        count = integer(key, state[key])
    except TypeError:
        count = minimum - 1
    if not minimum <= count < bound:
        raise ValueError(
            f"this state is damaged: {key}={short_repr(state[key])}; expected an integer from "
            f"{minimum} to {bound - 1}"
        )
    return count


def read_gaps(state: Mapping[str, Any], key: str = "skipped") -> Iterator[tuple[int, int]]:
    """Yield the skipped ranges of a state; raise ValueError if they are malformed."""
    skipped = state[key]
    if not isinstance(skipped, list | tuple):
        raise ValueError(f"this state is damaged: {key} is {short_repr(skipped)}; expected a list")
    for pair in skipped:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError(
                f"this state is damaged: {key} has {short_repr(pair)}; expected a start and a stop"
            )
        ends = {"start": pair[0], "stop": pair[1]}
        yield read_count(ends, "start"), read_count(ends, "stop")


def require_keys(state: Any, keys: Iterable[str]) -> None:
    """Raise TypeError if `state` is not a mapping, or ValueError if it lacks one of `keys`."""
    if not isinstance(state, Mapping):
        raise TypeError(f"a state is a dict that state_dict() returned, not {short_repr(state)}")
    if missing := [key for key in keys if key not in state]:
        hint = ""
        if "sample_in_epoch" in state:
            hint = (
                "; it looks like a state of Streaming: load it into an iteration with Streaming's "
                "order, such as shuffle='py1e'"
            )
        raise ValueError(f"this is not a state of an iteration: {', '.join(missing)} missing{hint}")


def difference_message(key: str, saved: Any, current: Any) -> str:
    """Return an error message for a setting that differs: saved and current value, and fix."""
    if key == "version":
        return (
            f"the state has version {short_repr(saved)}; this release of npstream reads versions "
            f"{' and '.join(map(str, _VERSIONS))}"
        )
    if key == "fingerprint":
        parts = saved.split("-") if isinstance(saved, str) else []
        key = "view" if parts[:1] == current.split("-")[:1] else "dataset"
        return f"the state is of another {key}: {_FIXES[key]}"
    if key == "samples":
        is_count = isinstance(saved, int) and not isinstance(saved, bool)
        size = quantity(saved, "sample") if is_count else f"{short_repr(saved)} samples"
        return f"the state is of a view of {size}; this view has {current:,}: {_FIXES[key]}"
    if key in OPTIONAL_SETTINGS:
        texts = [f"{key}= of {short_repr(v)}" if v else f"no {key}=" for v in (saved, current)]
        return (
            f"the state is of an iteration with {texts[0]}; this iteration has {texts[1]}: give "
            "the settings of the run that saved the state"
        )
    return (
        f"the state is of {key}={short_repr(saved)}; this iteration has {key}={current!r}: use the "
        "setting of the state"
    )


def _hash_value(digest: hashlib.blake2b, value: Any) -> None:
    """Add a value to a hash; lengths and delimiters separate it from the next value."""
    if isinstance(value, np.ndarray):
        digest.update(f"{value.dtype.str}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).view(np.uint8).data)
    elif isinstance(value, tuple):
        digest.update(f"({len(value)}".encode())
        for part in value:
            _hash_value(digest, part)
    elif isinstance(value, Mask | Selection | Concatenation):
        _hash_value(digest, value.__reduce__()[1])
    elif hasattr(value, "identity"):  # an order, which is determined by its identity
        digest.update(f"{value.identity()};".encode())
    else:  # a number, a range or a str
        digest.update(f"{value!r};".encode())

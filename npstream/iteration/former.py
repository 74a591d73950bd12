"""Provide `former_source`, to resume from states that were saved before an append.

An append does not change the positions of existing samples. So an iteration over the dataset can
continue in the order of the former version, which depends only on the former index.

Tested in tests/iteration/test_former.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from npstream.errors import FormatError, StorageError
from npstream.formats.index import INDEX, parse_index
from npstream.formats.versions import version_name, version_of_name
from npstream.joins.versions import begins_with
from npstream.reading.source import Source

if TYPE_CHECKING:
    from npstream.formats.index import Index
    from npstream.indexing.selection import Selection

__all__ = ["FormerSource", "former_source", "former_version_hint"]


class FormerSource(Source):
    """The first samples of a dataset, in the orders of a former version.

    Parameters
    ----------
    source : Source
        The dataset.
    former : Index
        The index of the former version. The dataset begins with all shards of that version.
    """

    __slots__ = ("_former",)

    def __init__(self, source: Source, former: Index) -> None:
        super().__init__(source.fetcher, source.fields, source.column_errors, source.limit)
        self._former = former

    def __reduce__(self) -> tuple[Any, ...]:
        source = Source(self.fetcher, self.fields, self.column_errors, self.limit)
        return FormerSource, (source, self._former)

    @property
    def index(self) -> Index:
        """The index of the former version."""
        return self._former


def former_source(
    source: Source, selection: Selection, state: Mapping[str, Any]
) -> FormerSource | None:
    """Return the former version of a dataset to which a state belongs.

    Parameters
    ----------
    source : Source
        The dataset.
    selection : Selection
        The view over which the iteration runs.
    state : mapping
        A state that does not fit the newest version.

    Returns
    -------
    FormerSource or None
        None if the view is not the whole dataset, or if the store does not keep the index of the
        former version. Also None if the dataset does not begin with the shards of that version.
    """
    if source.members or not selection.is_whole:
        return None
    former = _kept_index(source, state.get("fingerprint"))
    if former is None or not begins_with(source.index, former):
        return None
    return FormerSource(source, former)


def former_version_hint(source: Source, state: Mapping[str, Any]) -> str:
    """Return a message about the other version to which a state belongs; "" if there is none."""
    for owner, fingerprint in _fingerprints(source, state):
        other = _kept_index(owner, fingerprint)
        if other is None:
            continue
        version, where = other.fingerprint(), owner.index.where
        if len(other) > len(owner.index) and begins_with(other, owner.index):
            return (
                f"; the state is of a newer version of {where} than the one that is open: call "
                f"refresh(version={version!r}) of the dataset, and iterate over the result"
            )
        return (
            f"; the state is of a former version of {where}, which is kept: open it with "
            f"version={version!r}"
        )
    return ""


def _fingerprints(source: Source, state: Mapping[str, Any]) -> Iterator[tuple[Source, Any]]:
    """Yield each dataset with its fingerprint in a state."""
    if not source.members:
        yield source, state.get("fingerprint")
        return
    mixture = state.get("mixture")
    saved = mixture.get("sources") if isinstance(mixture, Mapping) else None
    for saved_source in saved if isinstance(saved, list | tuple) else ():
        for member in source.members:
            if isinstance(saved_source, Mapping) and saved_source.get("name") == member.name:
                yield member.source, saved_source.get("fingerprint")


def _kept_index(source: Source, fingerprint: Any) -> Index | None:
    """Return the index of the version that a fingerprint names; None if there is none.

    It is a former index that was kept, or the newest one in the store.
    """
    version = fingerprint.partition("-")[0] if isinstance(fingerprint, str) else ""
    name = version_name(version)
    store = getattr(source.fetcher.shards, "store", None)
    if store is None or version_of_name(name) is None or version == source.index.fingerprint():
        return None
    for file in (name, INDEX):
        try:
            index = parse_index(store.read(file), store.where(file))
        except (StorageError, FormatError):
            continue
        if index.fingerprint() == version:
            return index
    return None

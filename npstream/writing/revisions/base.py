"""Provide `Base`, the dataset that a write replaces or appends to, and its former versions.

An append keeps the former index as ``index.<fingerprint>.json``. The shards and the side-car of the
former version do not change, so that version can still be read.

Tested in tests/writing/test_publication.py.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from npstream._core.log import log
from npstream.errors import FormatError, IntegrityError
from npstream.formats.encodings.encodings import Encoding, parse, with_dtype
from npstream.formats.index import (
    ANNOTATIONS_KEY,
    ANNOTATIONS_VERSION,
    INDEX,
    INDEX_VERSION,
    Index,
    Schema,
    parse_index,
)
from npstream.formats.sidecar.sidecar import Sidecar, digest_index
from npstream.formats.versions import SIDECAR_FILE, version_of_name
from npstream.storage.versions import version_of
from npstream.writing.text import TEXT_FORMATS, parse_text_type

if TYPE_CHECKING:
    from npstream.storage.local import Store
    from npstream.storage.uploads import Tag
    from npstream.writing.shard import ShardFormat

__all__ = [
    "Base",
    "arguments_for_append",
    "check_columns",
    "files_in_use",
    "former_files",
    "new_document",
]

_COLUMN_FILES = "index.columns/"

_FORMATS = {"mds": "mds", **{stored: name for name, stored in TEXT_FORMATS.items()}}
"""The public name of each format, by its name in the index."""


class Base:
    """A dataset in a store: its index, and the side-car that belongs to it.

    Parameters
    ----------
    store : LocalStore or RemoteStore
    name : str
        The name of the index file.
    tag : Tag
        The content of the index file, and its version in the store.

    Attributes
    ----------
    tag : Tag
        The parameter.
    index : Index
        The index, validated.
    document : dict
        The index as parsed JSON.
    """

    def __init__(self, store: Store, name: str, tag: Tag) -> None:
        self.tag = tag
        self.index = parse_index(tag.content, store.where(name))
        self.document: dict[str, Any] = json.loads(tag.content)
        self._store = store

    @classmethod
    def read(cls, store: Store, name: str = INDEX) -> Base | None:
        """Return the dataset that a store holds; None if it holds none."""
        try:
            return cls(store, name, store.read_tagged(name))
        except FileNotFoundError:
            return None

    @cached_property
    def version(self) -> str:
        """The fingerprint of the index."""
        return self.index.fingerprint()

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The entries of the shards."""
        entries: list[dict[str, Any]] = self.document["shards"]
        return entries

    @property
    def schema(self) -> Schema:
        """The columns of the last shard. Without shards, the columns in the index's annotations."""
        schemas, ids = self.index.schemas, self.index.schema_ids
        if not schemas:
            raise FormatError(
                f"{self.index.where}: no shards and no columns: the columns of the dataset are "
                "unknown; replace it with mode='w'"
            )
        return schemas[ids[-1]] if len(ids) else schemas[0]

    @cached_property
    def columns(self) -> dict[str, Encoding]:
        """The encodings of the columns, in the order of the first writer's input."""
        schema, columns = self.schema, {}
        for name, text in zip(schema.names, schema.encodings, strict=True):
            if schema.format != "mds":
                columns[name] = parse_text_type(text)
                continue
            encoding = parse(text)
            dtype = self.index.annotations.dtypes.get(name)
            columns[name] = encoding if dtype is None else with_dtype(encoding, dtype)
        order = [name for name in self.index.annotations.order if name in columns]
        return {name: columns[name] for name in dict.fromkeys([*order, *columns])}

    def settings_for(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments of `write`, with the settings of the last shard as defaults."""
        schema = self.schema
        defaults: dict[str, Any] = {"format": _FORMATS[schema.format]}
        settings = dict(arguments)
        if settings["format"] in (None, defaults["format"]):
            if schema.format != "mds":
                defaults["newline"] = schema.newline
            if schema.format == "xsv":
                defaults["separator"] = schema.separator
        if self.entries:
            last = self.entries[-1]
            defaults |= {"compression": last.get("compression"), "hashes": last.get("hashes", ())}
        for name, value in defaults.items():
            settings[name] = settings[name] or value
        return settings

    def reconcile(
        self, columns: Mapping[str, str | Encoding], weakly_typed: Container[str]
    ) -> dict[str, str | Encoding]:
        """Return `columns`, but with the dataset's encoding where it can hold the column's values.

        Parameters
        ----------
        columns : mapping of str to (str or Encoding)
            The encodings of the table's columns.
        weakly_typed : container of str
            Columns of Python values. Each value is checked when it is written.
        """
        reconciled: dict[str, str | Encoding] = {}
        for name, encoding in columns.items():
            existing = self.columns.get(name)
            reconciled[name] = encoding
            if existing is not None and (
                name in weakly_typed
                or (isinstance(encoding, Encoding) and _can_hold(existing, encoding))
            ):
                reconciled[name] = existing
        return reconciled

    def select(self, names: Iterable[str]) -> dict[str, Encoding]:
        """Return the dataset's encodings of the columns that a caller named."""
        for name in names:
            if name not in self.columns:
                raise ValueError(
                    f"columns= names {name!r}, and {self.index.where} has no such column, but "
                    f"{', '.join(map(repr, self.columns))}: leave it out"
                )
        return {name: self.columns[name] for name in names}

    @cached_property
    def sidecar(self) -> Sidecar | None:
        """The side-car that belongs to the index; None if there is none."""
        version = str(version_of(self.tag.info)) if self.tag.info else ""
        digest = digest_index(self.tag.content, version, self._store.root)
        for name in filter(None, (SIDECAR_FILE, self.index.annotations.sidecar)):
            try:
                sidecar = Sidecar(self._store, name)
                if sidecar.index_digest.matches(digest):
                    return sidecar
            except FileNotFoundError:
                continue
            except (FormatError, IntegrityError) as error:
                log("a side-car is ignored, because it cannot be read: %s", error)
        return None

    def is_extended_by(self, other: Base) -> bool:
        """Return True if another version of the dataset begins with all shards of this one."""
        return other.entries[: len(self.entries)] == self.entries

    def extended_document(
        self, entries: list[dict[str, Any]], dtypes: Mapping[str, str], sidecar: str
    ) -> dict[str, Any]:
        """Return the document of an index with more shards.

        Parameters
        ----------
        entries : list of dict
            The entries of the new shards.
        dtypes : mapping of str to str
            The dtypes of the new shards' columns, for the annotations of the index.
        sidecar : str
            The file name of the new side-car; empty if there is none.
        """
        document = {**self.document, "shards": [*self.entries, *entries]}
        existing = self.document.get(ANNOTATIONS_KEY, {"version": ANNOTATIONS_VERSION})
        if not isinstance(existing, dict) or "version" not in existing:
            return document  # another program uses the same key
        annotations = {k: v for k, v in existing.items() if k not in ("schema", "sidecar")}
        if dtypes:
            annotations["dtypes"] = {**annotations.get("dtypes", {}), **dtypes}
        if sidecar:
            annotations["sidecar"] = sidecar
        document[ANNOTATIONS_KEY] = annotations
        if annotations.keys() == {"version"}:
            del document[ANNOTATIONS_KEY]
        return document

    @property
    def can_name_sidecar(self) -> bool:
        """Whether a new index can name a side-car in its annotations.

        It cannot if another program uses the key of the annotations.
        """
        annotations = self.document.get(ANNOTATIONS_KEY, {"version": ANNOTATIONS_VERSION})
        return isinstance(annotations, dict) and "version" in annotations

    def files(self) -> set[str]:
        """Return the names of the files of the shards, and of the side-car and its columns."""
        names = set(_shard_files(self.index))
        if (sidecar := self.sidecar) is not None:
            names |= {sidecar.name, *(column.file for column in sidecar.columns.values())}
        return names


def arguments_for_append(
    arguments: Mapping[str, Any], base: Base | None, saved: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of an append that describe its format.

    Parameters
    ----------
    arguments : mapping
        The arguments of `write`.
    base : Base or None
        The dataset, whose last shard has the defaults.
    saved : mapping
        The settings of an interrupted append. If there are any, they are the defaults instead.
    """
    result = dict(arguments)
    if saved:
        inherited = ["format", "compression", "hashes"]
        inherited += ["newline"] * (saved["format"] != "mds")
        inherited += ["separator"] * (saved["format"] == "xsv")
        result |= {name: result[name] or saved[name] for name in inherited}
    elif base is not None:
        result = base.settings_for(result)
    return {**result, "format": result["format"] or "mds"}


def new_document(
    layout: ShardFormat, entries: list[dict[str, Any]], sidecar: str = ""
) -> dict[str, Any]:
    """Return the document of an index of these shards.

    Parameters
    ----------
    layout : ShardFormat
    entries : list of dict
    sidecar : str
        The file name of the side-car; empty for the default name, or if there is no side-car.
    """
    document: dict[str, Any] = {"shards": entries, "version": INDEX_VERSION}
    annotations = layout.annotations._replace(sidecar=sidecar)
    if annotations or not entries:
        schema = None if entries else layout.empty_schema
        document[ANNOTATIONS_KEY] = annotations.to_document(schema)
    return document


def _can_hold(existing: Encoding, encoding: Encoding) -> bool:
    """Return True if `existing` can hold all arrays of `encoding`, with the same dtype."""
    if existing.dtype != encoding.dtype or existing.dtype == object:
        return False
    if existing.kind == "ndarray":
        return encoding.kind == "ndarray" or bool(encoding.shape)
    return (existing.kind, existing.shape) == ("fixed", encoding.shape) and encoding.kind == "fixed"


def _shard_files(index: Index) -> Iterator[str]:
    for shard in range(len(index)):
        files = index.files(shard)
        for file in (files.data, files.zip_data, files.meta, files.zip_meta):
            if file is not None:
                yield file.name


def check_columns(base: Base, layout: ShardFormat) -> None:
    """Raise ValueError unless new shards have the columns and the format of a dataset."""
    where, columns, existing = base.index.where, layout.columns, base.columns
    for name, encoding in existing.items():
        if name not in columns:
            raise ValueError(
                f"column {name!r} of {where} is {encoding.name!r}, and what is appended has no "
                "such column: add it to every sample, or give its value in fill="
            )
        # An index without shards records MDS encodings, also for a text format.
        if columns[name].name != encoding.name and layout.empty_schema != base.schema:
            raise ValueError(
                f"column {name!r} of {where} is {encoding.name!r}, and in what is appended it is "
                f"{columns[name].name!r}: convert it, or name {encoding.name!r} in columns=, which "
                "refuses values that it cannot hold"
            )
    for name, encoding in columns.items():
        if name not in existing:
            raise ValueError(
                f"column {name!r} of what is appended is {encoding.name!r}, and {where} has no "
                f"such column, but {', '.join(map(repr, existing))}: leave it out, with columns="
            )
    schemas = base.index.schemas
    if layout.schema not in schemas and (base.entries or layout.empty_schema not in schemas):
        raise ValueError(
            f"{where} has the format {_describe(base.schema)}, and what is appended "
            f"{_describe(layout.schema)}: leave out format=, separator= and newline="
        )


def _describe(schema: Schema) -> str:
    settings = {"separator": schema.separator, "newline": schema.newline}
    parts = [f"{name}={value!r}" for name, value in settings.items() if value]
    return ", ".join([_FORMATS[schema.format], *parts])


def files_in_use(store: Store) -> set[str]:
    """Return the files of the shards and side-cars of a dataset and of its kept versions.

    Raises
    ------
    FormatError
        If an index is invalid. A side-car that is invalid is ignored.
    StorageError
        If an index or side-car cannot be read.
    """
    versions = [name for name in store.entries() if version_of_name(name) is not None]
    in_use: set[str] = set()
    for name in (INDEX, *versions):
        version = Base.read(store, name)
        if version is not None:
            in_use |= version.files()
    return in_use


def former_files(store: Store, base: Base) -> list[str]:
    """Return the files of a replaced dataset that `files_in_use` does not return.

    Shards in other directories are left out: they belong to datasets that were merged.

    Parameters
    ----------
    store : LocalStore or RemoteStore
    base : Base
        The former dataset.

    Raises
    ------
    FormatError
        If an index is invalid.
    StorageError
        If an index or side-car cannot be read.
    """
    in_use = files_in_use(store)
    return sorted(
        name for name in base.files() - in_use if "/" not in name or name.startswith(_COLUMN_FILES)
    )

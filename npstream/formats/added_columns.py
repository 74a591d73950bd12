"""The file ``columns.json``, which lists the columns that were added to a dataset.

Each *group* of columns was added by one call. Its values are in separate datasets, the *parts*, in
directories below ``columns/``. The concatenated parts have one row for each sample that the dataset
had at that time. Samples that were appended later have no row in the parts. The file is untrusted
input: a violation of the format raises `FormatError`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from npstream.errors import FormatError
from npstream.formats.index import MAX_FILE_BYTES, RELATIVE_PATH, Index

COLUMNS_FOLDER = "columns"
"""The directory of the parts of added columns."""

FORMAT = "npstream columns"

FORMAT_VERSION = 1

_MAX_COUNT = MAX_FILE_BYTES
"""Counts of samples and shards must be below this number, which is far above any real count."""


@dataclass(frozen=True, slots=True)
class GroupPart:
    """A dataset with values of a group.

    ``path`` is relative to the directory of the main dataset. ``samples`` is the part's number of
    samples.
    """

    path: str
    samples: int


@dataclass(frozen=True, slots=True)
class BaseVersion:
    """The version of the dataset that a group was written for.

    Attributes
    ----------
    fingerprint : str
        The fingerprint of the dataset's index.
    shards : int
        The number of shards of the dataset.
    digest : str
        The `shards_digest` of these shards. If the dataset has more shards now, and its first
        `shards` shards have the same digest, samples were appended to it.
    """

    fingerprint: str
    shards: int
    digest: str


@dataclass(frozen=True, slots=True)
class ColumnGroup:
    """Columns that were added together.

    Attributes
    ----------
    columns : tuple of str
        The names of the columns.
    parts : tuple of GroupPart
        The datasets with the values, in the order of the samples.
    base : BaseVersion
        The version of the dataset that the columns were added to.
    fill : str
        The path of a dataset of one sample, whose values stand in for samples that were appended
        later; empty if there is none.
    fill_columns : tuple of str
        The columns of the dataset at `fill`.
    """

    columns: tuple[str, ...]
    parts: tuple[GroupPart, ...]
    base: BaseVersion
    fill: str = ""
    fill_columns: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """The number of samples with values."""
        return sum(part.samples for part in self.parts)

    @property
    def paths(self) -> set[str]:
        """The paths of the group's datasets."""
        return {part.path for part in self.parts} | ({self.fill} if self.fill else set())

    def applies_to(self, index: Index) -> bool:
        """Return True if `index` is of the base version, or of this version with appended samples.

        Equal fingerprints are not enough, because a fingerprint does not depend on file names.
        Another dataset with the same fingerprint may have replaced the base version.
        """
        shards = self.base.shards
        return shards <= len(index) and self.base.digest == shards_digest(index, shards)


def base_version(index: Index) -> BaseVersion:
    """Return the version of a dataset for a new group of columns."""
    return BaseVersion(index.fingerprint(), len(index), shards_digest(index, len(index)))


def shards_digest(index: Index, count: int) -> str:
    """Return a hash of the index entries of the first `count` shards.

    It covers their names, sizes, sample counts, schemas and recorded hashes.
    """
    digest = hashlib.blake2b(digest_size=16)
    for array in (index.starts[: count + 1], index.nbytes[:count]):
        digest.update(array.astype(array.dtype.newbyteorder("<")).data)
    for shard in range(count):
        schema = index.schemas[index.schema_ids[shard]]
        data = index.files(shard).data
        digest.update(repr((schema, data.name, sorted(data.hashes.items()))).encode())
    return digest.hexdigest()


def format_groups(groups: Iterable[ColumnGroup]) -> bytes:
    """Return the content of a ``columns.json``."""
    document = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "groups": [
            {
                "columns": list(group.columns),
                "parts": [{"path": part.path, "samples": part.samples} for part in group.parts],
                "dataset": {
                    "version": group.base.fingerprint,
                    "shards": group.base.shards,
                    "digest": group.base.digest,
                },
                **(
                    {"fill": {"path": group.fill, "columns": list(group.fill_columns)}}
                    if group.fill
                    else {}
                ),
            }
            for group in groups
        ],
    }
    return json.dumps(document, indent=1).encode()


def parse_groups(text: bytes, where: str) -> tuple[ColumnGroup, ...]:
    """Parse and validate a ``columns.json``.

    Parameters
    ----------
    text : bytes
        Content of the file.
    where : str
        Path or URL of the file, for messages.

    Raises
    ------
    FormatError
        If the file violates the format, or a newer version of npstream wrote it.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not JSON: {error}") from None
    try:
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"it is not a list of added columns, of format {FORMAT!r}")
        if (version := document.get("version")) != FORMAT_VERSION:
            raise ValueError(
                f"format version {version!r}; this release of npstream reads {FORMAT_VERSION}"
            )
        return tuple(_parse_group(item) for item in _require_type(document["groups"], list))
    except KeyError as error:
        raise FormatError(f"{where}: the key {error} is missing") from None
    except (TypeError, ValueError) as error:
        raise FormatError(f"{where}: {error}") from None


def _parse_group(item: Any) -> ColumnGroup:
    columns = _parse_names(_require_type(item, dict)["columns"])
    parts = tuple(
        GroupPart(_parse_path(_require_type(part, dict)["path"]), _parse_count(part["samples"]))
        for part in _require_type(item["parts"], list)
    )
    base = _require_type(item["dataset"], dict)
    version = BaseVersion(
        _require_type(base["version"], str),
        _parse_count(base["shards"]),
        _require_type(base["digest"], str),
    )
    if not columns or not parts:
        raise ValueError("a group has no columns or no parts")
    if "fill" not in item:
        return ColumnGroup(columns, parts, version)
    fill = _require_type(item["fill"], dict)
    return ColumnGroup(
        columns, parts, version, _parse_path(fill["path"]), _parse_names(fill["columns"])
    )


def _require_type(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"a value is of type {type(value).__name__}; expected {kind.__name__}")
    return value


def _parse_names(value: Any) -> tuple[str, ...]:
    names = tuple(_require_type(name, str) for name in _require_type(value, list))
    if len(set(names)) < len(names):
        raise ValueError(f"a column is listed twice in {list(names)}")
    return names


def _parse_count(value: Any) -> int:
    if not 0 <= _require_type(value, int) < _MAX_COUNT:
        raise ValueError(f"{value} is not a number of samples or shards")
    return int(value)


def _parse_path(value: Any) -> str:
    if not RELATIVE_PATH.fullmatch(_require_type(value, str)) or not value.startswith(
        f"{COLUMNS_FOLDER}/"
    ):
        raise ValueError(f"the path {value!r} is not below {COLUMNS_FOLDER}/")
    return str(value)

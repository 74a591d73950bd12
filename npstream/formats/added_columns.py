"""The file ``columns.json``, which lists the columns that were added beside a dataset.

Each *group* of columns was added by one call. Its values are in datasets of their own, the *parts*,
in directories below ``columns/``. The parts of a group, one after the other, have the values of the
first samples of the dataset. The file is untrusted input: a violation of the format raises
`FormatError`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from npstream.errors import FormatError
from npstream.formats.index import MAX_FILE_BYTES, RELATIVE_PATH, Index

COLUMNS_FILE = "columns.json"
"""The file that lists the added columns of a dataset."""

COLUMNS_FOLDER = "columns"
"""The directory of the parts of added columns."""

FORMAT = "npstream columns"

FORMAT_VERSION = 1

_MAX_SAMPLES = MAX_FILE_BYTES


@dataclass(frozen=True, slots=True)
class GroupPart:
    """A dataset with values of a group: its path below the dataset's directory, and its size."""

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
        Its number of shards.
    digest : str
        The `shards_digest` of these shards. A dataset of more shards with the same digest was
        appended to.
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
    parts : tuple of GroupPart
    base : BaseVersion
    fill : str
        The path of a dataset of one sample, which has the values for samples that were appended
        later; empty if there is none.
    fill_columns : tuple of str
        The columns of that dataset.
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
        """Return True if the dataset is the version of the group, or was appended to since.

        The fingerprint is not enough: a dataset that replaces another one may have the same.
        """
        shards = self.base.shards
        return shards <= len(index) and self.base.digest == shards_digest(index, shards)


def base_version(index: Index) -> BaseVersion:
    """Return the version of a dataset for a new group of columns."""
    return BaseVersion(index.fingerprint(), len(index), shards_digest(index, len(index)))


def shards_digest(index: Index, count: int) -> str:
    """Return a hash of the names, content and sample order of the first `count` shards."""
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
        If it violates the format, or is of a newer version of npstream.
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
        return tuple(_parse_group(item) for item in _checked(document["groups"], list))
    except KeyError as error:
        raise FormatError(f"{where}: the key {error} is missing") from None
    except (TypeError, ValueError) as error:
        raise FormatError(f"{where}: {error}") from None


def _parse_group(item: Any) -> ColumnGroup:
    columns = _names(_checked(item, dict)["columns"])
    parts = tuple(
        GroupPart(_path(_checked(part, dict)["path"]), _count(part["samples"]))
        for part in _checked(item["parts"], list)
    )
    base = _checked(item["dataset"], dict)
    version = BaseVersion(
        _checked(base["version"], str), _count(base["shards"]), _checked(base["digest"], str)
    )
    if not columns or not parts:
        raise ValueError("a group has no columns or no parts")
    if "fill" not in item:
        return ColumnGroup(columns, parts, version)
    fill = _checked(item["fill"], dict)
    return ColumnGroup(columns, parts, version, _path(fill["path"]), _names(fill["columns"]))


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"a value is of type {type(value).__name__}; expected {kind.__name__}")
    return value


def _names(value: Any) -> tuple[str, ...]:
    names = tuple(_checked(name, str) for name in _checked(value, list))
    if len(set(names)) < len(names):
        raise ValueError(f"a column is listed twice in {list(names)}")
    return names


def _count(value: Any) -> int:
    if not 0 <= _checked(value, int) < _MAX_SAMPLES:
        raise ValueError(f"{value} is not a number of samples or shards")
    return int(value)


def _path(value: Any) -> str:
    if not RELATIVE_PATH.fullmatch(_checked(value, str)) or not value.startswith(
        f"{COLUMNS_FOLDER}/"
    ):
        raise ValueError(f"the path {value!r} is not below {COLUMNS_FOLDER}/")
    return str(value)

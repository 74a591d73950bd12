"""Provide the records of a write that can resume: its settings, and one record of each shard.

Tested in tests/writing/resumption/test_records.py.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from npstream._core.arguments import quantity
from npstream.errors import short_repr
from npstream.formats.scan import ScanResult
from npstream.formats.statistics import decode_statistics, encode_statistics

__all__ = [
    "ALL_FILES",
    "OTHER_DATA",
    "RECORD_VERSION",
    "Checkpoint",
    "SavedWrite",
    "ShardRecord",
    "decode_record",
    "difference_error",
    "encode_record",
    "keep_message",
    "settings_differences",
]

RECORD_VERSION = 1

ALL_FILES = "the files of the interrupted write"

OTHER_DATA = (
    "the interrupted write had stored all samples, and data has others now: write the same data, "
    "or remove"
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a write is at the end of a shard.

    Attributes
    ----------
    number : int
        The number of the input sample of the shard's last row.
    output : int
        How many outputs of `map=` for that sample come before the last row.
    part : tuple of (str, int) or None
        The position of that sample in an input made of parts: the name of the part, and the number
        of samples before the sample in this part.
    row_hash : str
        The hash of the last row's bytes. It is "" if another encoding of the same values may give
        other bytes, as with pickle.
    reject_state : tuple of (int, int)
        The number of samples that were left out before the last row, and the size of the file of
        rejects, in bytes.
    """

    number: int
    output: int
    part: tuple[str, int] | None
    row_hash: str
    reject_state: tuple[int, int]


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """The record of a stored shard, from which a write can resume.

    Attributes
    ----------
    entry : dict
        Its entry in the index.
    checkpoint : Checkpoint
    scan : ScanResult or None
        The scan of the shard for the side-car; None without a side-car.
    """

    entry: dict[str, Any]
    checkpoint: Checkpoint
    scan: ScanResult | None

    def files(self) -> dict[str, int]:
        """Return the names of the shard's files, and their sizes in bytes."""
        kinds = ("data", "meta")
        files = [self.entry.get(f"zip_{kind}") or self.entry.get(f"raw_{kind}") for kind in kinds]
        return {file["basename"]: file["bytes"] for file in files if file}


@dataclass(slots=True)
class SavedWrite:
    """An interrupted write.

    Attributes
    ----------
    settings : dict
        The settings that a write must have to continue this one.
    bodies : iterator of bytes
        The encoded records of its whole shards, in order.
    shards : int
        The number of whole shards.
    publication : dict or None
        None if the write had not yet stored all samples. Otherwise the hash of its index ("index"),
        and the numbers of shards ("shards"), input samples ("input") and samples that were left out
        ("rejected").
    index : bytes or None
        The index, if the write has published it.
    """

    settings: dict[str, Any]
    bodies: Iterator[bytes]
    shards: int
    publication: dict[str, Any] | None = None
    index: bytes | None = None


def encode_record(record: ShardRecord) -> bytes:
    """Return the bytes of a record."""
    import msgpack

    checkpoint, scan = record.checkpoint, record.scan
    document: dict[str, Any] = {
        "version": RECORD_VERSION,
        "entry": json.dumps(record.entry),
        "checkpoint": [
            checkpoint.number,
            checkpoint.output,
            checkpoint.part,
            checkpoint.row_hash,
            checkpoint.reject_state,
        ],
    }
    if scan is not None:
        document["scan"] = {
            "begin": scan.begin,
            "meta": scan.meta,
            "pieces": scan.pieces.astype("<u8").tobytes(),
            "columns": {name: [v.dtype.str, v.tobytes()] for name, v in scan.columns.items()},
            "statistics": encode_statistics(scan.statistics),
        }
    body: bytes = msgpack.packb(document)
    return body


def decode_record(body: bytes) -> ShardRecord:
    """Return the record that `encode_record` encoded.

    Raises
    ------
    ValueError
        If the bytes do not follow the format.
    """
    import msgpack

    try:
        document = msgpack.unpackb(body)
        if document["version"] != RECORD_VERSION:
            raise ValueError(f"version {document['version']!r}; expected {RECORD_VERSION}")
        number, output, part, row_hash, rejects = document["checkpoint"]
        position = None if part is None else (str(part[0]), int(part[1]))
        checkpoint = Checkpoint(number, output, position, row_hash, (rejects[0], rejects[1]))
        scan = None
        if "scan" in document:
            saved = document["scan"]
            columns = {
                name: np.frombuffer(values, dtype)
                for name, (dtype, values) in saved["columns"].items()
            }
            scan = ScanResult(
                saved["begin"],
                np.frombuffer(saved["pieces"], "<u8"),
                saved["meta"],
                columns,
                decode_statistics(saved["statistics"]),
            )
        return ShardRecord(json.loads(document["entry"]), checkpoint, scan)
    except (LookupError, TypeError, AttributeError, ValueError, msgpack.UnpackException) as error:
        raise ValueError(f"a record of an interrupted write is damaged: {error}") from None


def settings_differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return the differences between the settings of an interrupted write and of this one.

    Examples
    --------
    >>> settings_differences({"shard_size": 300, "map": False}, {"shard_size": 600, "map": False})
    ['shard_size: 300 then, 600 now']
    """
    return [
        f"{name}: {_format_setting(saved.get(name))} then, {_format_setting(current.get(name))} now"
        for name in dict.fromkeys([*saved, *current])
        if saved.get(name) != current.get(name)
    ]


def difference_error(path: str, differences: Collection[str], files: str) -> ValueError:
    """Return the error of a write with other settings than the interrupted one.

    Parameters
    ----------
    path : str
        The path or URL of the dataset.
    differences : collection of str
        The differences, which `settings_differences` describes.
    files : str
        What to remove to give up the interrupted write.
    """
    return ValueError(
        f"{path}: the write that was interrupted here differs from this one: "
        f"{'; '.join(differences)}. Pass the same arguments and data, or remove {files}"
    )


def keep_message(path: str, shards: Collection[int]) -> str:
    """Return the text that a failed write adds to its error if shards stay.

    Parameters
    ----------
    path : str
        The path or URL of the dataset.
    shards : collection of int
        The numbers of the recorded shards. A resumed write writes the shards after a gap again.
    """
    count = next(number for number in range(len(shards) + 1) if number not in shards)
    return (
        f"{path} keeps {quantity(count, 'whole shard')}, which readers do not see: the same call "
        "with resume=True continues from there"
    )


def _format_setting(value: Any) -> str:
    return "none" if value is None else short_repr(value)

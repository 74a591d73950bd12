"""Checks of the offsets and the configuration in a shard's head.

Tested in tests/formats/test_index.py.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.typing import Bytes
from npstream.errors import FormatError

if TYPE_CHECKING:
    from npstream.formats.index import Schema

_MAX_CONFIGURATION_BYTES = 1 << 20
"""`check_configuration` ignores a larger configuration of a shard."""


def check_ascending(offsets: np.ndarray[Any, np.dtype[np.uint32]]) -> None:
    """Raise `FormatError` unless a shard's offsets ascend strictly.

    Without this check, a damaged offset could select another sample unnoticed.
    """
    if (descends := offsets[1:] <= offsets[:-1]).any():
        row = int(descends.argmax())
        raise FormatError(f"sample {row} begins at byte {offsets[row]}, ends at {offsets[row + 1]}")


def check_configuration(schema: Schema, configuration: Bytes) -> None:
    """Compare the configuration stored in a shard with the index.

    Reading does not need the configuration, and other writers omit it. But without this check, an
    index with wrong encodings or column names would silently yield wrong values.

    Parameters
    ----------
    schema : Schema
    configuration : ndarray of uint8
        The JSON object that the shard stores. Bytes that do not start with an object are ignored.

    Raises
    ------
    FormatError
        If the configuration differs from `schema`, or if other bytes follow the object.
    """
    if len(configuration) > _MAX_CONFIGURATION_BYTES:
        return
    try:
        text = configuration.tobytes().decode(errors="replace").lstrip()
        document, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return
    if not isinstance(document, dict):
        return
    if text[end:].strip():
        raise FormatError("other bytes follow its configuration")
    names, encodings = list(schema.names), list(schema.encodings)
    expected: dict[str, Any] = {"column_names": names, "column_encodings": encodings}
    if schema.format == "json":
        expected = {"columns": dict(zip(names, encodings, strict=True))}
    for key in expected.keys() & document.keys():
        if document[key] != expected[key]:
            raise FormatError(
                f"its own {key!r} are {document[key]!r}; the index says {expected[key]!r}"
            )

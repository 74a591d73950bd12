"""What a shard says of itself before its samples, held against the index.

Tested in tests/formats/test_mds.py.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.typing import Bytes
from npstream.errors import FormatError

if TYPE_CHECKING:
    from npstream.formats.index import Schema

_MAX_CONFIGURATION = 1 << 20


def check_ascent(offsets: np.ndarray[Any, np.dtype[np.uint32]]) -> None:
    """Raise FormatError unless a shard's offsets ascend.

    Damaged ones could otherwise pass one sample off as another, both whole.
    """
    if (descends := offsets[1:] <= offsets[:-1]).any():
        row = int(descends.argmax())
        raise FormatError(f"sample {row} begins at byte {offsets[row]}, ends at {offsets[row + 1]}")


def check_configuration(schema: Schema, configuration: Bytes) -> None:
    """Compare what a shard says of its own columns with what the index says.

    Reading does not need it, and other writers leave it out; but an index that calls the bytes
    something else, or by another name, would give wrong values without any other sign.

    Parameters
    ----------
    schema : Schema
    configuration : ndarray of uint8
        The JSON object that stands in the shard; what does not begin with one is passed over.

    Raises
    ------
    FormatError
        If they differ, or something follows the object.
    """
    if len(configuration) > _MAX_CONFIGURATION:
        return
    try:
        text = configuration.tobytes().decode(errors="replace").lstrip()
        said, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return
    if not isinstance(said, dict):
        return
    if text[end:].strip():
        raise FormatError("something follows its configuration")
    names, encodings = list(schema.names), list(schema.encodings)
    known: dict[str, Any] = {"column_names": names, "column_encodings": encodings}
    if schema.format == "json":
        known = {"columns": dict(zip(names, encodings, strict=True))}
    for key in known.keys() & said.keys():
        if said[key] != known[key]:
            raise FormatError(f"its own {key!r} are {said[key]!r}; the index says {known[key]!r}")

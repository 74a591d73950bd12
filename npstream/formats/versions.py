"""Names of the files of a dataset, and of the files that belong to one of its versions.

Tested in tests/formats/test_index.py.
"""

from __future__ import annotations

import re

__all__ = [
    "COLUMNS_FILE", "SIDECAR_FILE", "SIDECAR_NAME", "sidecar_in_head", "version_name",
    "version_of_name",
]  # fmt: skip

SIDECAR_FILE = "index.msgpack"
"""The side-car, unless the index names another file."""

COLUMNS_FILE = "columns.json"
"""The file that lists the added columns of a dataset."""

SIDECAR_NAME = re.compile(r"index\.[0-9a-z.]{1,100}\.msgpack")
"""The names of side-cars that an index may name."""

_SIDECAR_IN_HEAD = re.compile(rb'"sidecar": "(index\.[0-9a-z.]{1,100}\.msgpack)"')

_VERSION_NAME = re.compile(r"index\.([0-9A-Za-z]+)\.json")


def version_name(version: str) -> str:
    """Return the name of the file that keeps the index of a former version.

    Parameters
    ----------
    version : str
        The fingerprint of the index.

    Examples
    --------
    >>> version_name("1f2e"), version_of_name("index.1f2e.json"), version_of_name("index.json")
    ('index.1f2e.json', '1f2e', None)
    """
    return f"index.{version}.json"


def version_of_name(name: str) -> str | None:
    """Return the version whose index a file keeps; None for other files."""
    match = _VERSION_NAME.fullmatch(name)
    return None if match is None else match[1]


def sidecar_in_head(head: bytes) -> str:
    """Return the side-car's file name from the first bytes of an index; "" if they contain none."""
    match = _SIDECAR_IN_HEAD.search(head)
    return "" if match is None else match[1].decode()

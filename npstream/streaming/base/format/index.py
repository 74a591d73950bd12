"""Provide `get_index_basename`, as ``streaming.base.format.index`` does.

Tested in tests/streaming/test_util.py.
"""

from __future__ import annotations

from npstream.formats.index import INDEX

__all__ = ["get_index_basename"]


def get_index_basename() -> str:
    """Return the name of the index in the directory of a dataset.

    Returns
    -------
    str

    Examples
    --------
    >>> get_index_basename()
    'index.json'
    """
    return INDEX

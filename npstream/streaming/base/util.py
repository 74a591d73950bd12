"""Provide the helper functions of Streaming that programs import.

Tested in tests/streaming/test_util.py.
"""

from __future__ import annotations

from npstream._core.log import log
from npstream.streaming.merging import merge_index

__all__ = [
    "bytes_to_int",
    "clean_stale_shared_memory",
    "get_list_arg",
    "merge_index",
    "number_abbrev_to_int",
]

_BYTES = {"kb": 10, "mb": 20, "gb": 30, "tb": 40, "pb": 50, "eb": 60, "zb": 70, "yb": 80}
"""Suffix of a number of bytes, and the binary logarithm of its factor."""

_COUNTS = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def get_list_arg(text: str) -> list[str]:
    """Split the text of a command-line option at its commas.

    Parameters
    ----------
    text : str
        The parts, separated by commas; empty for none.

    Returns
    -------
    list of str

    Examples
    --------
    >>> get_list_arg("sha1,xxh64"), get_list_arg("")
    (['sha1', 'xxh64'], [])
    """
    return text.split(",") if text else []


def bytes_to_int(bytes_str: int | float | str) -> int:
    """Return the int for a number of bytes or for text such as "64mb". A kb has 1,024 bytes.

    Parameters
    ----------
    bytes_str : int, float or str
        The number, or text: digits, with or without b, or a number and one of kb, mb, gb, tb, pb,
        eb, zb and yb.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If the text has another form.

    Examples
    --------
    >>> bytes_to_int("1.5kb"), bytes_to_int("10b"), bytes_to_int(7)
    (1536, 10, 7)
    """
    if isinstance(bytes_str, int | float):
        return int(bytes_str)
    text = bytes_str.lower().strip()
    if (bits := _BYTES.get(text[-2:])) is not None:
        return int(_number(text[:-2], bytes_str, "b, " + ", ".join(_BYTES)) * 2**bits)
    digits = text.removesuffix("b")
    if not digits.isdecimal():
        _number("", bytes_str, "b, " + ", ".join(_BYTES))  # raises
    return int(digits)


def number_abbrev_to_int(abbrev_str: int | float | str) -> int:
    """Return the int for a number or for text such as "64M".

    Parameters
    ----------
    abbrev_str : int, float or str
        The number, or text: digits, or a number and one of k, m, b (a billion) and t (a trillion).

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If the text has another form.

    Examples
    --------
    >>> number_abbrev_to_int("1.5k"), number_abbrev_to_int("77b"), number_abbrev_to_int("12")
    (1500, 77000000000, 12)
    """
    if isinstance(abbrev_str, int | float):
        return int(abbrev_str)
    text = abbrev_str.lower().strip()
    if (factor := _COUNTS.get(text[-1:])) is not None:
        return int(_number(text[:-1], abbrev_str, ", ".join(_COUNTS)) * factor)
    if not text.isdecimal():
        _number("", abbrev_str, ", ".join(_COUNTS))  # raises
    return int(text)


def _number(text: str, whole_text: str, suffixes: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"{whole_text!r}: expected a number, with one of the suffixes {suffixes}, or digits"
        ) from None


def clean_stale_shared_memory() -> None:
    """Do nothing: npstream creates no named shared memory, so none can be stale.

    Examples
    --------
    >>> clean_stale_shared_memory()
    """
    log("clean_stale_shared_memory has nothing to clean: npstream creates no named shared memory")

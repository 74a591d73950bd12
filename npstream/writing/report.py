"""What a write returns, and the samples that it leaves out.

Tested in tests/writing/test_writer.py.
"""

from __future__ import annotations

import json
import os
import reprlib
from dataclasses import dataclass
from itertools import islice
from typing import Any

from npstream._core.arguments import quantity
from npstream.errors import StorageError

__all__ = ["REFUSALS", "Rejected", "Rejects", "WriteReport", "rejects_for"]


@dataclass(frozen=True, slots=True)
class WriteReport:
    """The summary of a written dataset: the result of `write` and `Writer.close`.

    Attributes
    ----------
    path : str
        The dataset's directory or URL.
    columns : dict of str to str
        The encoding of each column, as ``columns=`` takes it, in the order they were given in.
    samples : int
        Number of samples.
    shards : int
        Number of shards.
    raw_bytes : int
        Bytes of all shards before compression.
    stored_bytes : int
        Bytes of all shards as they are stored.
    seconds : float
        Time from the Writer's creation to the index's publication.
    rejected : int, default: 0
        Number of samples that were left out, with ``on_error="skip"``.

    Examples
    --------
    >>> import numpy as np
    >>> import npstream
    >>> report = npstream.write("squares", {"square": np.arange(10) ** 2}, compression="zstd")
    >>> report.samples, report.shards, report.stored_bytes < report.raw_bytes
    (10, 1, True)
    """

    path: str
    columns: dict[str, str]
    samples: int
    shards: int
    raw_bytes: int
    stored_bytes: int
    seconds: float
    rejected: int = 0


REFUSALS = (TypeError, ValueError, KeyError)
"""What an encoder raises at a sample that it refuses."""


class _SampleRepr(reprlib.Repr):
    """A shortened repr that keeps the order of keys."""

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        if level <= 0:
            return "{...}"
        pairs = [
            f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}"
            for key, value in islice(x.items(), self.maxdict)
        ]
        return "{" + ", ".join(pairs + ["..."] * (len(x) > self.maxdict)) + "}"


_repr = _SampleRepr()
_repr.maxlevel = 4
_repr.maxdict = _repr.maxlist = _repr.maxtuple = 16
_repr.maxstring = _repr.maxother = _repr.maxlong = 200

_LONGEST = 1000
"""Characters of a sample's text."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A sample that is left out.

    Attributes
    ----------
    number : int
        Its number in the input.
    reason : str
        The message of the error.
    text : str
        Its repr, cut short.
    """

    number: int
    reason: str
    text: str

    @classmethod
    def of(cls, sample: Any, number: int, error: Exception) -> Rejected:
        """Return a sample as it is recorded."""
        try:
            text = _repr.repr(sample)[:_LONGEST]
        except Exception as failed:  # a value's own __repr__ may raise anything
            text = f"<{type(sample).__name__} whose repr raised {type(failed).__name__}>"
        return cls(number, str(error), text)


class Rejects:
    """The samples that are left out: their count, and a file of JSON lines.

    Parameters
    ----------
    path : str or os.PathLike, optional
        The file, which is replaced. It stays if the write fails.
    max_errors : int, optional
        How many samples may be left out.

    Attributes
    ----------
    count : int
        How many were left out so far.
    """

    def __init__(self, path: str | os.PathLike[str] | None, max_errors: int | None) -> None:
        self.count = 0
        self._max_errors = max_errors
        self._path = path
        self._write("w", "")

    def add(self, rejected: Rejected) -> None:
        """Record a sample.

        Raises
        ------
        ValueError
            If there are more than may be.
        StorageError
            If the file cannot be written.
        """
        self.count += 1
        facts = {"sample": rejected.number, "reason": rejected.reason, "value": rejected.text}
        self._write("a", json.dumps(facts) + "\n")
        if self._max_errors is not None and self.count > self._max_errors:
            raise ValueError(
                f"{quantity(self.count, 'sample')} were refused, more than "
                f"max_errors={self._max_errors}; the last: {rejected.reason}"
            )

    def _write(self, mode: str, text: str) -> None:
        if self._path is None:
            return
        try:
            with open(self._path, mode, encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            reason = error.strerror or str(error)
            what = f"{reason}: cannot write rejects="
            raise StorageError(error.errno, what, os.fspath(self._path)) from error


def rejects_for(
    on_error: str, max_errors: int | None, path: str | os.PathLike[str] | None
) -> Rejects | None:
    """Return where refused samples go; None if they raise."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r}: it is 'raise' or 'skip'")
    if max_errors is not None and (type(max_errors) is not int or max_errors < 0):
        raise ValueError(f"max_errors={max_errors!r}: it is None or an int that is not negative")
    if on_error == "skip":
        return Rejects(path, max_errors)
    if max_errors is not None or path is not None:
        given = "rejects" if path is not None else "max_errors"
        raise ValueError(f"{given}= is for on_error='skip', which leaves refused samples out")
    return None

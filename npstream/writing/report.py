"""Provide the summary of a write, and the record of samples that it leaves out.

Tested in tests/writing/test_writer.py.
"""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from npstream._core.arguments import quantity, size_text
from npstream.errors import StorageError

__all__ = ["REFUSALS", "RejectedSample", "Rejects", "WriteReport", "count_bytes", "make_rejects"]


@dataclass(frozen=True, slots=True, repr=False)
class WriteReport:
    """The summary of a written dataset: the result of `write` and `Writer.close`.

    Attributes
    ----------
    path : str
        The dataset's directory or URL.
    columns : dict of str to str
        The name of each column's encoding, as in ``columns=``, in the order of the input.
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

    def __repr__(self) -> str:
        size = size_text(self.stored_bytes)
        if self.stored_bytes != self.raw_bytes:
            size += f" ({size_text(self.raw_bytes)} before compression)"
        facts = [f"{quantity(self.samples, 'sample')} in {quantity(self.shards, 'shard')}", size]
        if self.rejected:
            facts.append(f"{quantity(self.rejected, 'sample')} left out")
        facts.append(f"{self.seconds:.3g} s")
        width = max(map(len, self.columns), default=0)
        lines = [f"<npstream.WriteReport: {', '.join(facts)}, {self.path}"]
        lines += [f"  {name:<{width}}  {encoding}" for name, encoding in self.columns.items()]
        return "\n".join(lines) + ">"


def count_bytes(entries: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """Return the bytes of shards before compression, and as they are stored.

    Parameters
    ----------
    entries : iterable of mapping
        The entries of the shards in ``index.json``.
    """
    raw_bytes = stored_bytes = 0
    for entry in entries:
        for kind in ("data", "meta"):
            if (raw := entry.get(f"raw_{kind}")) is not None:
                raw_bytes += raw["bytes"]
                stored_bytes += (entry.get(f"zip_{kind}") or raw)["bytes"]
    return raw_bytes, stored_bytes


REFUSALS = (TypeError, ValueError, KeyError)
"""The exceptions of an encoder for a sample that it cannot encode."""


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

_MAX_REPR_CHARACTERS = 1000
"""Maximum characters of a sample's recorded repr."""


@dataclass(frozen=True, slots=True)
class RejectedSample:
    """A sample that is left out.

    Attributes
    ----------
    number : int
        The sample's number in the input.
    reason : str
        The message of the error.
    sample_repr : str
        Its repr, shortened.
    output : int
        How many outputs of ``map=`` for the same input sample come before it.
    """

    number: int
    reason: str
    sample_repr: str
    output: int = 0

    @classmethod
    def from_sample(
        cls, sample: Any, number: int, error: Exception, output: int = 0
    ) -> RejectedSample:
        """Return the record of a sample that raised `error` when it was encoded."""
        try:
            text = _repr.repr(sample)[:_MAX_REPR_CHARACTERS]
        except Exception as repr_error:  # a value's own __repr__ may raise anything
            text = f"<{type(sample).__name__} whose repr raised {type(repr_error).__name__}>"
        return cls(number, str(error), text, output)


class Rejects:
    """The samples that are left out: their count, and a file of JSON lines.

    Parameters
    ----------
    path : str or os.PathLike, optional
        The file, which is replaced. It stays if the write fails. By default there is no file.
    max_errors : int, optional
        Number of samples that may be left out; by default any number.
    keep : bool, default: False
        Whether to keep an existing file until `resume` is called.

    Attributes
    ----------
    count : int
        Number of samples that were left out so far.
    nbytes : int
        Bytes of the file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        max_errors: int | None,
        *,
        keep: bool = False,
    ) -> None:
        self.count = self.nbytes = self._synced_bytes = 0
        self._max_errors = max_errors
        self._path = path
        if not keep:
            self._write("w", "")

    def resume(self, count: int, nbytes: int) -> None:
        """Go on after `count` samples, whose records are the first `nbytes` bytes of the file.

        Raises
        ------
        StorageError
            If the file is shorter, or cannot be written.
        """
        self.count, self.nbytes = count, nbytes
        if self._path is None:
            return
        with self._storage_errors():
            if not nbytes:
                self._write("w", "")
                return
            size = os.path.getsize(self._path)
            if size < nbytes:
                raise StorageError(
                    f"{os.fspath(self._path)}: rejects= has {quantity(size, 'byte')}, and had "
                    f"{nbytes:,} when the write was interrupted: name the same file"
                )
            os.truncate(self._path, nbytes)

    def sync(self, nbytes: int) -> None:
        """Bring the first `nbytes` bytes of the file to the disk."""
        if self._path is None or self._synced_bytes >= nbytes:
            return
        with self._storage_errors(), open(self._path, "rb") as file:
            os.fsync(file.fileno())
        self._synced_bytes = nbytes

    def add(self, rejected: RejectedSample) -> None:
        """Record a sample that is left out.

        Raises
        ------
        ValueError
            If there are more than `max_errors`.
        StorageError
            If the file cannot be written.
        """
        self.count += 1
        record = {
            "sample": rejected.number,
            "reason": rejected.reason,
            "value": rejected.sample_repr,
        }
        self._write("a", json.dumps(record) + "\n")
        if self._max_errors is not None and self.count > self._max_errors:
            raise ValueError(
                f"{quantity(self.count, 'refused sample')}, more than "
                f"max_errors={self._max_errors}; the last: {rejected.reason}"
            )

    def _write(self, mode: str, text: str) -> None:
        if self._path is None:
            return
        with self._storage_errors(), open(self._path, mode, encoding="utf-8") as file:
            file.write(text)
        self.nbytes += len(text)  # JSON is ASCII

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            reason = error.strerror or str(error)
            message = f"{reason}: cannot write rejects="
            raise StorageError(error.errno, message, os.fspath(self._path or "")) from error


def make_rejects(
    on_error: str,
    max_errors: int | None,
    path: str | os.PathLike[str] | None,
    *,
    keep: bool = False,
) -> Rejects | None:
    """Check the arguments of `write`, and return the record of rejected samples.

    The result is None if `on_error` is "raise". If `keep` is True, an existing file is kept until
    `Rejects.resume` is called.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r}: it is 'raise' or 'skip'")
    if max_errors is not None and (type(max_errors) is not int or max_errors < 0):
        raise ValueError(f"max_errors={max_errors!r}: it is None or an int that is not negative")
    if on_error == "skip":
        return Rejects(path, max_errors, keep=keep)
    if max_errors is not None or path is not None:
        option = "rejects" if path is not None else "max_errors"
        raise ValueError(f"{option}= is for on_error='skip', which leaves refused samples out")
    return None

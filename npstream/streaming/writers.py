"""Provide `MDSWriter` and the writers of text formats, with Streaming's arguments."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from npstream._core.log import warn
from npstream.formats.encodings.encodings import parse
from npstream.streaming.base.util import bytes_to_int
from npstream.writing.writer import Writer

if TYPE_CHECKING:
    from npstream.writing.report import WriteReport

_ARGUMENTS = ("progress_bar", "max_workers", "retry", "exist_ok")
"""Further arguments of Streaming's writers."""


class _StreamingWriter:
    """Writes a dataset; the base of all writers here."""

    format: ClassVar[str]

    def __init__(
        self,
        *,
        columns: Mapping[str, str],
        out: str | tuple[str, str],
        keep_local: bool = False,
        compression: str | None = None,
        hashes: Sequence[str] | None = None,
        size_limit: int | str | None = 1 << 26,
        **kwargs: Any,
    ) -> None:
        _check(hashes or (), kwargs)
        self.columns = dict(columns)
        self.keep_local, self.compression = keep_local, compression or None
        self.hashes = list(hashes or ())
        self.size_limit = bytes_to_int(size_limit) if size_limit else None
        if self.size_limit is not None and self.size_limit < 0:
            raise ValueError(f"size_limit={size_limit!r}: expected more than 0 bytes, or None")
        self.local, self.remote = _places(out)
        places = [place for place in (self.local, self.remote) if place is not None]
        if self.remote is not None and not keep_local:
            places = [self.remote]
        mode = "w" if kwargs.get("exist_ok") else "x"
        if mode == "x" and self.local in places:
            _require_empty(self.local)
        retries = kwargs.get("retry", 2)
        settings = {**self._format_settings(), "compression": self.compression}
        with ExitStack() as stack:
            # One writer for each place. The remote one finishes first: if it fails, the stack
            # discards the local one.
            self._npstream_writers = [
                stack.enter_context(
                    Writer(
                        place, self.columns, mode=mode, shard_size=self.size_limit,
                        hashes=self.hashes, retries=retries, **settings,
                    )
                )
                for place in places
            ]  # fmt: skip
            self._npstream_stack = stack.pop_all()

    def _format_settings(self) -> dict[str, Any]:
        return {"format": {"mds": "mds", "json": "jsonl"}.get(self.format, self.format)}

    def get_config(self) -> dict[str, Any]:
        """Return the settings that an index records of each shard.

        Returns
        -------
        dict

        Examples
        --------
        >>> out = str(getfixture("tmp_path") / "numbers")
        >>> MDSWriter(columns={"x": "int"}, out=out).get_config()["column_sizes"]
        [8]
        """
        return {
            "version": 2, "format": self.format, "compression": self.compression,
            "hashes": self.hashes, "size_limit": self.size_limit,
        }  # fmt: skip

    def write(self, sample: Mapping[str, Any]) -> None:
        """Add a sample.

        Parameters
        ----------
        sample : mapping of str to object
            A value for each column. Other keys are ignored.

        Raises
        ------
        TypeError, ValueError
            If a column's encoding cannot store a value exactly.
        KeyError
            If the sample lacks a column.

        Examples
        --------
        >>> out = str(getfixture("tmp_path") / "numbers")
        >>> with MDSWriter(columns={"x": "int"}, out=out) as writer:
        ...     writer.write({"x": 1, "ignored": 2})
        >>> npstream.open(out)[0]
        {'x': 1}
        """
        for writer in self._npstream_writers:
            writer.write(sample)

    def finish(self) -> None:
        """Publish the dataset, unless it is already published.

        Raises
        ------
        OSError
            If a file cannot be stored.

        Examples
        --------
        >>> out = str(getfixture("tmp_path") / "numbers")
        >>> writer = MDSWriter(columns={"x": "int"}, out=out)
        >>> writer.write({"x": 1})
        >>> writer.finish()
        >>> writer.report.samples
        1
        """
        self._npstream_stack.close()

    @property
    def report(self) -> WriteReport:
        """The summary of the finished dataset."""
        return self._npstream_writers[0].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._npstream_stack.__exit__(kind, error, traceback)


class MDSWriter(_StreamingWriter):
    """Writes a dataset in the format MDS, which Streaming reads, too.

    If the block of its ``with`` statement raises, nothing is published.

    Parameters
    ----------
    columns : mapping of str to str
        The encoding of each column.
    out : str or (str, str)
        A local directory, a URL, or a pair of both. With a pair, the local directory is written
        only if `keep_local` is True.
    keep_local : bool, default: False
        Whether to write the local directory of a pair, too.
    compression : str, optional
        The codec, such as "zstd" or "zstd:7".
    hashes : sequence of str, optional
        Names of the hashes that the index records for each file, in alphabetical order.
    size_limit : int, str or None, default: 67108864
        Maximum bytes of a shard; None for a single shard. A kb has 1,024 bytes.
    **kwargs : Any
        ``exist_ok=True`` replaces a dataset that is there. ``retry`` is the number of retries of a
        request. ``progress_bar`` and ``max_workers`` are not used.

    Raises
    ------
    TypeError
        If there is no such encoding.
    ValueError
        If a codec, hash, size or argument is invalid.
    FileExistsError
        If `out` is a directory that is not empty, unless ``exist_ok=True``.

    Examples
    --------
    >>> out = str(getfixture("tmp_path") / "numbers")
    >>> with MDSWriter(columns={"x": "int", "name": "str"}, out=out) as writer:
    ...     writer.write({"x": 1, "name": "one"})
    >>> npstream.open(out)[0]
    {'x': 1, 'name': 'one'}
    """

    format = "mds"

    def __init__(
        self,
        *,
        columns: Mapping[str, str],
        out: str | tuple[str, str],
        keep_local: bool = False,
        compression: str | None = None,
        hashes: Sequence[str] | None = None,
        size_limit: int | str | None = 1 << 26,
        **kwargs: Any,
    ) -> None:
        self.column_names = sorted(columns)
        self.column_encodings = [columns[name] for name in self.column_names]
        self.column_sizes = []
        for name, encoding in zip(self.column_names, self.column_encodings, strict=True):
            try:
                self.column_sizes.append(parse(encoding).size)
            except ValueError as error:
                raise TypeError(f"MDSWriter: column {name!r}: {error}") from None
        super().__init__(
            columns=columns, out=out, keep_local=keep_local, compression=compression,
            hashes=hashes, size_limit=size_limit, **kwargs,
        )  # fmt: skip

    def get_config(self) -> dict[str, Any]:
        """Return the settings that an index records of each shard.

        Returns
        -------
        dict

        Examples
        --------
        >>> out = str(getfixture("tmp_path") / "numbers")
        >>> MDSWriter(columns={"x": "int"}, out=out).get_config()["column_sizes"]
        [8]
        """
        return {
            **super().get_config(), "column_names": self.column_names,
            "column_encodings": self.column_encodings, "column_sizes": self.column_sizes,
        }  # fmt: skip


class JSONWriter(_StreamingWriter):
    r"""Writes a dataset as lines of JSON.

    Parameters
    ----------
    columns : mapping of str to {"str", "int", "float"}
        The type of each column.
    newline : str, default: "\n"
        The text after each sample.
    **kwargs : Any
        As for `MDSWriter`: `out`, `keep_local`, `compression`, `hashes`, `size_limit`, and others.

    Raises
    ------
    ValueError
        If an argument is invalid.
    FileExistsError
        If `out` is a directory that is not empty, unless ``exist_ok=True``.

    Examples
    --------
    >>> out = str(getfixture("tmp_path") / "numbers")
    >>> with JSONWriter(columns={"x": "int"}, out=out) as writer:
    ...     writer.write({"x": 1})
    >>> npstream.open(out)[0]
    {'x': 1}
    """

    format = "json"

    def __init__(self, *, columns: Mapping[str, str], newline: str = "\n", **kwargs: Any) -> None:
        self.newline = newline
        super().__init__(columns=columns, **kwargs)

    def _format_settings(self) -> dict[str, Any]:
        return {**super()._format_settings(), "newline": self.newline}

    def get_config(self) -> dict[str, Any]:
        """Return the settings that an index records of each shard.

        Returns
        -------
        dict

        Examples
        --------
        >>> out = str(getfixture("tmp_path") / "numbers")
        >>> JSONWriter(columns={"x": "int"}, out=out).get_config()["columns"]
        {'x': 'int'}
        """
        return {**super().get_config(), "columns": self.columns, "newline": self.newline}


class XSVWriter(_StreamingWriter):
    r"""Writes a dataset as lines of separated values, without quotes.

    Parameters
    ----------
    columns : mapping of str to {"str", "int", "float"}
        The type of each column.
    separator : str
        The text between two values.
    newline : str, default: "\n"
        The text after each sample.
    **kwargs : Any
        As for `MDSWriter`: `out`, `keep_local`, `compression`, `hashes`, `size_limit`, and others.

    Raises
    ------
    ValueError
        If an argument is invalid.
    FileExistsError
        If `out` is a directory that is not empty, unless ``exist_ok=True``.

    Examples
    --------
    >>> out = str(getfixture("tmp_path") / "numbers")
    >>> with XSVWriter(columns={"x": "int"}, separator="|", out=out) as writer:
    ...     writer.write({"x": 1})
    >>> npstream.open(out)[0]
    {'x': 1}
    """

    format = "xsv"

    def __init__(
        self,
        *,
        columns: Mapping[str, str],
        separator: str,
        newline: str = "\n",
        **kwargs: Any,
    ) -> None:
        self.separator, self.newline = separator, newline
        self.column_names = sorted(columns)
        self.column_encodings = [columns[name] for name in self.column_names]
        super().__init__(columns=columns, **kwargs)

    def _format_settings(self) -> dict[str, Any]:
        separator = {"separator": self.separator} if self.format == "xsv" else {}
        return {**super()._format_settings(), **separator, "newline": self.newline}

    def get_config(self) -> dict[str, Any]:
        """Return the settings that an index records of each shard.

        Returns
        -------
        dict

        Examples
        --------
        >>> out = str(getfixture("tmp_path") / "numbers")
        >>> XSVWriter(columns={"x": "int"}, separator="|", out=out).get_config()["separator"]
        '|'
        """
        separator = {"separator": self.separator} if self.format == "xsv" else {}
        return {
            **super().get_config(), "column_names": self.column_names,
            "column_encodings": self.column_encodings, **separator, "newline": self.newline,
        }  # fmt: skip


class CSVWriter(XSVWriter):
    r"""Writes a dataset as lines of values between commas, without quotes.

    Parameters
    ----------
    columns : mapping of str to {"str", "int", "float"}
        The type of each column.
    newline : str, default: "\n"
        The text after each sample.
    **kwargs : Any
        As for `MDSWriter`: `out`, `keep_local`, `compression`, `hashes`, `size_limit`, and others.

    Raises
    ------
    ValueError
        If an argument is invalid.
    FileExistsError
        If `out` is a directory that is not empty, unless ``exist_ok=True``.

    Examples
    --------
    >>> out = str(getfixture("tmp_path") / "numbers")
    >>> with CSVWriter(columns={"x": "int"}, out=out) as writer:
    ...     writer.write({"x": 1})
    >>> npstream.open(out)[0]
    {'x': 1}
    """

    format = "csv"

    def __init__(self, *, columns: Mapping[str, str], newline: str = "\n", **kwargs: Any) -> None:
        super().__init__(columns=columns, separator=",", newline=newline, **kwargs)


class TSVWriter(XSVWriter):
    r"""Writes a dataset as lines of values between tabs, without quotes.

    Parameters
    ----------
    columns : mapping of str to {"str", "int", "float"}
        The type of each column.
    newline : str, default: "\n"
        The text after each sample.
    **kwargs : Any
        As for `MDSWriter`: `out`, `keep_local`, `compression`, `hashes`, `size_limit`, and others.

    Raises
    ------
    ValueError
        If an argument is invalid.
    FileExistsError
        If `out` is a directory that is not empty, unless ``exist_ok=True``.

    Examples
    --------
    >>> out = str(getfixture("tmp_path") / "numbers")
    >>> with TSVWriter(columns={"x": "int"}, out=out) as writer:
    ...     writer.write({"x": 1})
    >>> npstream.open(out)[0]
    {'x': 1}
    """

    format = "tsv"

    def __init__(self, *, columns: Mapping[str, str], newline: str = "\n", **kwargs: Any) -> None:
        super().__init__(columns=columns, separator="\t", newline=newline, **kwargs)


_warned: set[str] = set()


def _check(hashes: Sequence[str], arguments: Mapping[str, Any]) -> None:
    """Raise ValueError for invalid arguments; log once those that have no meaning here."""
    if list(hashes) != sorted(set(hashes)):
        raise ValueError(f"hashes={list(hashes)}: expected distinct names in alphabetical order")
    if unknown := arguments.keys() - set(_ARGUMENTS):
        raise ValueError(f"unknown arguments of the writer: {', '.join(sorted(unknown))}")
    for name in ("progress_bar", "max_workers"):
        if arguments.get(name) and name not in _warned:
            _warned.add(name)
            warn("%s is not used: npstream stores shards in the background by itself", name)


def _places(out: str | tuple[str, str]) -> tuple[str | None, str | None]:
    """Return the local directory and the remote one of an argument ``out``."""
    if isinstance(out, str | os.PathLike):
        text = os.fspath(out)
        return (None, text) if "://" in text else (os.path.expanduser(text), None)
    if len(out) != 2:
        raise ValueError(f"out={out!r}: expected a directory, a URL, or a pair of both")
    return os.path.expanduser(out[0]), out[1] or None


def _require_empty(directory: str | None) -> None:
    """Raise FileExistsError if a directory has files."""
    if directory is not None and os.path.isdir(directory) and os.listdir(directory):
        raise FileExistsError(
            f"{directory!r} is not empty: choose another directory, or give exist_ok=True to "
            "replace the dataset there"
        )

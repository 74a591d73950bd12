"""Provide the formats that a dataset can be written in.

Tested in tests/writing/test_text.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from npstream.errors import ColumnError, NpstreamError
from npstream.formats.compression import parse_compression
from npstream.formats.encodings.encodings import Encoding, encoding_of_type
from npstream.writing import text
from npstream.writing.report import make_rejects
from npstream.writing.settings import (
    check_mode,
    check_shard_samples,
    check_workers,
    hash_names,
    size_limit,
)
from npstream.writing.shard import MdsFormat, ShardFormat, ShardOptions
from npstream.writing.tables import infer_column, is_utf8_text, parse_column, with_column
from npstream.writing.text import TextFormat, TextOptions

__all__ = ["FormatSettings", "check_settings", "parse_settings"]

WRITTEN_FORMATS = ("mds", *text.TEXT_FORMATS)


@dataclass(frozen=True, slots=True)
class FormatSettings:
    """The checked settings of a dataset's format.

    Attributes
    ----------
    shards : ShardOptions
    text : TextOptions or None
        None for MDS.
    """

    shards: ShardOptions
    text: TextOptions | None

    def infer_format(
        self, sample: Mapping[str, Any], names: Iterable[str] | None, number: int
    ) -> ShardFormat:
        """Return the format that fits the first sample, and check that it can encode the sample.

        Parameters
        ----------
        sample : mapping of str to object
        names : iterable of str, optional
            The columns; by default all of the sample.
        number : int
            The number of the sample, for messages.
        """
        encodings = {}
        for name in sample if names is None else names:
            if name not in sample:
                raise ColumnError(name, sample, f"sample {number}: ")
            try:
                encodings[name] = infer_column(name, sample[name])
            except NpstreamError:
                raise
            except (TypeError, ValueError) as error:
                kind = ValueError if isinstance(error, ValueError) else TypeError
                raise kind(f"sample {number}: {error}") from error
        layout = self.new_format(encodings)
        layout.encode(sample, number)
        return layout

    def new_format(self, columns: Any, *, inferred: bool = False) -> ShardFormat:
        """Return the format for some columns.

        Parameters
        ----------
        columns : mapping of str to (str or Encoding)
            For each column, the caller's choice, which is a type or the name of an encoding, or an
            Encoding that was inferred from values.
        inferred : bool, default: False
            Whether the names in `columns` are those of inferred encodings. If `columns` has an
            Encoding, all encodings count as inferred.

        Raises
        ------
        TypeError, ValueError
            If there are no columns, or the format cannot store them.
        """
        if not isinstance(columns, Mapping):
            raise TypeError(f"columns maps names to encodings, or lists names; got {columns!r}")
        if not columns:
            raise ValueError("a dataset has at least one column; columns is empty")
        parsed = {}
        for name, value in columns.items():
            encoding = encoding_of_type(value) or value
            if not isinstance(name, str) or not isinstance(encoding, str | Encoding):
                value = encoding.name if isinstance(encoding, Encoding) else encoding
                raise TypeError(
                    f"columns maps names to encodings, such as 'int32', or types; got {name!r}: "
                    f"{value!r}"
                )
            if not is_utf8_text(name):
                raise ValueError(
                    f"column {name!r}: its name has surrogates, which UTF-8 cannot encode"
                )
            parsed[name] = self._column(name, encoding)
        if self.text is not None:
            return TextFormat(parsed, self.shards, self.text)
        inferred = inferred or any(isinstance(each, Encoding) for each in columns.values())
        return MdsFormat(parsed, self.shards, inferred=inferred)

    def describe(self) -> dict[str, Any]:
        """Return the settings as a JSON object; the keys are the names of `write`'s arguments."""
        text = self.text
        return {
            "format": "mds" if text is None else text.format,
            "separator": None if text is None else text.separator,
            "newline": None if text is None else text.newline,
            "shard_size": self.shards.size_limit,
            "compression": self.shards.compression,
            "hashes": sorted(set(self.shards.hashes)),
        }

    def _column(self, name: str, encoding: str | Encoding) -> Encoding:
        if self.text is None:
            return parse_column(name, encoding) if isinstance(encoding, str) else encoding
        try:
            if isinstance(encoding, str):
                return text.parse_text_type(encoding)
            return text.infer_text_type(encoding)
        except (TypeError, ValueError) as error:
            raise with_column(name, error) from None


def parse_settings(
    format: str,
    separator: str | None,
    newline: str | None,
    shard_size: int | str | None,
    compression: str | None,
    hashes: Iterable[str],
) -> FormatSettings:
    """Check the settings of a format.

    The parameters are those of `npstream.write`.

    Raises
    ------
    TypeError, ValueError
        If a format, separator, newline, size, compression or hash is invalid.
    """
    if format not in WRITTEN_FORMATS:
        matches = get_close_matches(str(format), WRITTEN_FORMATS, 1, 0.5)
        hint = f"did you mean {matches[0]!r}? " if matches else ""
        raise ValueError(
            f"unknown format {format!r}: {hint}choose from {', '.join(WRITTEN_FORMATS)}"
        )
    parse_compression(compression)
    shards = ShardOptions(size_limit(shard_size), compression, hash_names(hashes))
    if format != "mds":
        return FormatSettings(
            shards, TextOptions(format, separator, "\n" if newline is None else newline)
        )
    if separator is not None or newline is not None:
        raise ValueError("separator= and newline= need a text format: set format=, such as 'csv'")
    return FormatSettings(shards, None)


def check_settings(arguments: Mapping[str, Any]) -> None:
    """Check those arguments of `npstream.write` that can be checked before any data are read.

    Parameters
    ----------
    arguments : mapping of str to object
        The arguments, by name. ``hashes`` is a list.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.
    """
    mode, format = arguments["mode"], arguments["format"]
    check_mode(mode, arguments["exclusive"])
    check_workers(arguments["workers"])
    check_shard_samples(arguments["shard_samples"])
    # With `keep`, this creates no file.
    make_rejects(arguments["on_error"], arguments["max_errors"], arguments["rejects"], keep=True)
    names = ("shard_size", "compression", "hashes")
    # The format of an append is that of the dataset, which is not read yet.
    text = (None, None) if mode == "a" else (arguments["separator"], arguments["newline"])
    parse_settings(
        (format or "mds") if mode != "a" else "mds", *text, *(arguments[name] for name in names)
    )

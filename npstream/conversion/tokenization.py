"""Tokenize the text of a source, for ``tokenizer=`` of `convert`.

Tested in tests/conversion/test_tokenization.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from npstream.formats.encodings.encodings import Encoding, column_type
from npstream.tokens.blocks import TokenBlocks, token_blocks
from npstream.tokens.encoder import TokenMap

if TYPE_CHECKING:
    from npstream.tokens.encoder import Tokenizer
    from npstream.writing.mapping import MapFunction

__all__ = ["Tokenization"]

_OPTIONS = ("name", "dtype", "batched")
_BLOCK_OPTIONS = ("remainder", "pad")


@dataclass(frozen=True)
class Tokenization:
    """The arguments of `convert` about tokens.

    Attributes
    ----------
    tokenizer : tokenizers.Tokenizer or callable
    column : str
        The column of the text.
    block : int or None
        The number of ids of a block; None if each text is a row.
    separator : int, str or None
        With `block`, the id or the token after each text; None for no separator.
    options : dict of str to object
        Other arguments of `TokenMap` or `token_blocks`.
    """

    tokenizer: Tokenizer
    column: str
    block: int | None
    separator: int | str | None
    options: Mapping[str, Any]

    @classmethod
    def parse(
        cls,
        tokenizer: Tokenizer | None,
        column: str,
        block: int | None,
        separator: Any,
        options: Mapping[str, Any] | None,
    ) -> Tokenization | None:
        """Check the arguments; return None without a tokenizer.

        Raises
        ------
        TypeError
            If arguments exclude each other or need another one, or there is no such option.
        """
        if tokenizer is None:
            if block is not None or options is not None:
                raise TypeError("block= and token_options= need tokenizer=")
            return None
        if block is None and separator is not None:
            raise TypeError("separator= needs block=: without blocks each text is a row")
        allowed = (*_OPTIONS, *_BLOCK_OPTIONS) if block is not None else _OPTIONS
        for name in options or {}:
            if name not in allowed:
                raise TypeError(f"token_options has no option {name!r}; its options: {allowed}")
        return cls(tokenizer, column, block, separator, dict(options or {}))

    @property
    def name(self) -> str:
        """The column of the ids."""
        return str(self.options.get("name", "tokens"))

    def source_columns(self, columns: Any, is_mapped: bool) -> Any:
        """Convert the ``columns=`` of the user to the ``columns=`` of `Choice`.

        The user names the columns to write, with the column of ids. The result names the columns to
        read, with the column of the text. If `is_mapped` is True, the result describes the columns
        that the function `map` returns.

        Raises
        ------
        ValueError
            If the user names another column in addition to the blocks.
        """
        if isinstance(columns, str):
            return columns  # `Choice` raises TypeError for it
        if columns is None:
            return [self.column] if self.block is not None and not is_mapped else None
        requested = dict(columns) if isinstance(columns, Mapping) else dict.fromkeys(columns)
        without_ids = {name: each for name, each in requested.items() if name != self.name}
        if self.block is not None:
            if extra := [name for name in without_ids if name != self.column]:
                raise ValueError(
                    f"columns= names {extra[0]!r}: blocks cut across samples, so that "
                    f"{self.name!r} is their only column"
                )
            return None if is_mapped else [self.column]
        return requested if is_mapped else {**without_ids, self.column: None}

    def map_function(self, columns: Any, map: MapFunction | None) -> TokenMap | _MapThenTokens:
        """Return a function that replaces the text of a sample by its ids, after `map`."""
        options = dict(self.options)
        name = columns.get(self.name) if isinstance(columns, Mapping) else None
        if name is not None:
            encoding = column_type(name)
            if encoding.kind != "ndarray":
                raise ValueError(
                    f"column {self.name!r} is {name!r}: token ids are stored as 'ndarray:uint16' "
                    "or 'ndarray:uint32'"
                )
            options.setdefault("dtype", encoding.dtype)
        tokens = TokenMap(self.tokenizer, self.column, **options)
        return tokens if map is None else _MapThenTokens(map, tokens)

    def encodings(
        self,
        source_encodings: Mapping[str, str | Encoding] | None,
        columns: Any,
        token_encoding: str,
    ) -> dict[str, str | Encoding] | None:
        """Return the encodings to write, in order.

        Parameters
        ----------
        source_encodings : mapping of str to str or Encoding, or None
            The encodings of the columns that are read, including the text.
        columns : iterable of str or None
            The columns of the user. If they name neither the ids nor the text, the ids are the last
            column. By default the ids take the place of the text.
        token_encoding : str
            The encoding of the ids.
        """
        if source_encodings is None:
            return None
        # If all encodings are strings, `write` takes values of type `bytes` as encoded values. So
        # the encoding of the ids is a string only if all encodings of the source are strings.
        has_strings = all(isinstance(each, str) for each in source_encodings.values())
        id_encoding = token_encoding if has_strings else column_type(token_encoding)
        if columns is None or not ({self.name, self.column} & set(columns)):
            order = [name for name in source_encodings if columns is None or name != self.column]
            order += [] if columns is None else [self.name]
        else:
            order = list(columns)
        names = dict.fromkeys(self.name if name == self.column else name for name in order)
        return {
            name: id_encoding if name == self.name else source_encodings[name] for name in names
        }

    def user_encodings(self, columns: Any, token_encoding: str) -> dict[str, str | Encoding] | None:
        """Return the encodings that the user named, for a source that is not open yet.

        Raises
        ------
        TypeError
            If the user named only some of them.
        """
        if not isinstance(columns, Mapping) or not any(columns.values()):
            return None
        for name, each in columns.items():
            if each is None and name not in (self.name, self.column):
                raise TypeError(
                    f"columns= names the encodings of some columns, and not of {name!r}, which is "
                    "known only after the worker processes have started: name all, or none"
                )
        return self.encodings(columns, columns, token_encoding)

    def planned_columns(
        self, source_encodings: Mapping[str, str], columns: Any, map: MapFunction | None
    ) -> dict[str, str]:
        """Return the encodings that would be written, given the encodings without a tokenizer."""
        if self.block is not None:
            with closing(self.blocks([], 0)) as blocks:
                return {self.name: blocks.encoding}
        token_encoding = self.map_function(columns, map).encoding
        planned = self.encodings(source_encodings, columns, token_encoding) or {}
        return {
            name: each if isinstance(each, str) else each.name for name, each in planned.items()
        }

    def blocks(self, data: Any, workers: int) -> TokenBlocks:
        """Return the blocks of the texts in data."""
        assert self.block is not None
        return token_blocks(
            data, self.tokenizer, self.block,
            column=self.column, separator=self.separator, workers=workers, **self.options,
        )  # fmt: skip


class _MapThenTokens:
    """Calls the user's function with a sample, and tokenizes its results."""

    def __init__(self, function: MapFunction, tokens: TokenMap) -> None:
        self._function, self._tokens = function, tokens

    @property
    def encoding(self) -> str:
        return self._tokens.encoding

    def __call__(self, sample: Any) -> Any:
        result = self._function(sample)
        if result is None or isinstance(result, Mapping):
            return None if result is None else self._tokens(result)
        return (self._tokens(each) for each in result)

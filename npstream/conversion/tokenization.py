"""Tokenize the text of a source: what `convert` does with `tokenizer=`.

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
        The length of blocks; None for a row for each text.
    separator : int, str or None
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
            If arguments do not go together, or there is no such option.
        """
        if tokenizer is None:
            if block is not None or options is not None:
                raise TypeError("block= and token_options= need tokenizer=")
            return None
        if block is None and separator is not None:
            raise TypeError("separator= needs block=: without blocks each text is a row")
        known = (*_OPTIONS, *_BLOCK_OPTIONS) if block is not None else _OPTIONS
        for name in options or {}:
            if name not in known:
                raise TypeError(f"token_options has no option {name!r}; its options: {known}")
        return cls(tokenizer, column, block, separator, dict(options or {}))

    @property
    def name(self) -> str:
        """The column of the ids."""
        return str(self.options.get("name", "tokens"))

    def source_columns(self, columns: Any, is_mapped: bool) -> Any:
        """Return the columns of the source to read, for the columns that the user wants.

        With a function `map`, the user's columns are those after it.

        Raises
        ------
        ValueError
            If blocks have other columns than their own.
        """
        if isinstance(columns, str):
            return columns  # an error
        if columns is None:
            return [self.column] if self.block is not None and not is_mapped else None
        given = dict(columns) if isinstance(columns, Mapping) else dict.fromkeys(columns)
        others = {name: each for name, each in given.items() if name != self.name}
        if self.block is not None:
            if extra := [name for name in others if name != self.column]:
                raise ValueError(
                    f"columns= names {extra[0]!r}: blocks cut across samples, so that "
                    f"{self.name!r} is their only column"
                )
            return None if is_mapped else [self.column]
        return given if is_mapped else {**others, self.column: None}

    def map_function(self, columns: Any, map: MapFunction | None) -> TokenMap | _MapThenTokens:
        """Return the function from a sample of the source to one with ids."""
        options = dict(self.options)
        chosen = columns.get(self.name) if isinstance(columns, Mapping) else None
        if chosen is not None:
            encoding = column_type(chosen)
            if encoding.kind != "ndarray":
                raise ValueError(
                    f"column {self.name!r} is {chosen!r}: token ids are stored as 'ndarray:uint16' "
                    "or 'ndarray:uint32'"
                )
            options.setdefault("dtype", encoding.dtype)
        tokens = TokenMap(self.tokenizer, self.column, **options)
        return tokens if map is None else _MapThenTokens(map, tokens)

    def encodings(
        self, found: Mapping[str, str | Encoding] | None, columns: Any, encoding: str
    ) -> dict[str, str | Encoding] | None:
        """Return the encodings to write, given those of the columns that are read.

        The ids take the place that the user's columns give them, or that of the text.
        """
        if found is None:
            return None
        # Encodings that are all texts say that values of type `bytes` are encoded.
        is_named = all(isinstance(each, str) for each in found.values())
        own = encoding if is_named else column_type(encoding)
        if columns is None or not ({self.name, self.column} & set(columns)):
            order = [name for name in found if columns is None or name != self.column]
            order += [] if columns is None else [self.name]
        else:
            order = list(columns)
        names = dict.fromkeys(self.name if name == self.column else name for name in order)
        return {name: own if name == self.name else found[name] for name in names}

    def named_encodings(self, columns: Any, encoding: str) -> dict[str, str | Encoding] | None:
        """Return the encodings that the user named, for a source that is not open yet.

        Raises
        ------
        TypeError
            If only some are named.
        """
        if not isinstance(columns, Mapping) or not any(columns.values()):
            return None
        for name, each in columns.items():
            if each is None and name not in (self.name, self.column):
                raise TypeError(
                    f"columns= names the encodings of some columns, and not of {name!r}, which is "
                    "known only after the worker processes have started: name all, or none"
                )
        return self.encodings(columns, columns, encoding)

    def planned_columns(
        self, found: Mapping[str, str], columns: Any, map: MapFunction | None
    ) -> dict[str, str]:
        """Return the encodings that would be written, given those without a tokenizer."""
        if self.block is not None:
            with closing(self.blocks([], 0)) as blocks:
                return {self.name: blocks.encoding}
        encoding = self.map_function(columns, map).encoding
        planned = self.encodings(found, columns, encoding) or {}
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

"""Provide `token_blocks`, which cuts the token ids of documents into blocks of a fixed length.

A block can begin within a document. Its position is the number of that document, and the number of
the document's tokens before the block. A write that resumes tokenizes no earlier documents.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from npstream._core.arguments import integer, quantity
from npstream._core.log import log
from npstream._core.typing import AnyArray
from npstream.errors import ColumnError
from npstream.tokens.encoder import TokenEncoder, Tokenizer, TokenStream, text_of
from npstream.writing.formats import parse_settings
from npstream.writing.inputs.parts import Part, PartedInput
from npstream.writing.inputs.recognition import columns_of
from npstream.writing.mapping import apply_map, table_rows
from npstream.writing.settings import check_workers
from npstream.writing.tables import TableStream
from npstream.writing.workers import Task, WorkerPool

if TYPE_CHECKING:
    from npstream.writing.inputs.fill import Fill

__all__ = ["TokenBlocks", "token_blocks"]

_TABLE_BYTES = 1 << 21
"""Approximate bytes of the blocks that are written together."""

_GROUP = 256
"""Number of documents that are tokenized by one call, without worker processes."""

_GROUP_CHARACTERS = 1 << 20
"""Number of characters that end a group before it has `_GROUP` documents."""


class _Document(NamedTuple):
    """A document: its number in the input, and its tokens."""

    number: int
    ids: AnyArray


class _TableStart(NamedTuple):
    """The position where a table of blocks begins.

    Attributes
    ----------
    block : int
        The number of the first block of the table.
    document : int
        The document that has the last token before the table, as its number in the input. For the
        first table, the first document with tokens.
    part : str
        The name of the document's part of the input.
    offset : int
        The number of the document in its part.
    tokens : int
        Number of tokens of the document before the table.
    """

    block: int
    document: int
    part: str
    offset: int
    tokens: int


class TokenBlocks(PartedInput):
    """Token ids of documents in blocks of a fixed length, as data for `npstream.write`.

    Made by `token_blocks`, which describes the parameters.
    """

    def __init__(
        self,
        data: Any,
        tokenizer: Tokenizer,
        block: int,
        *,
        column: str = "text",
        separator: int | str | None = None,
        remainder: str = "drop",
        pad: int | str | None = None,
        name: str = "tokens",
        dtype: Any = None,
        batched: bool = False,
        workers: int = 0,
    ) -> None:
        self.block = integer("block", block, 1)
        self.name = name
        encoder = TokenEncoder(tokenizer, dtype, batched)
        self._dtype = encoder.dtype
        separator_id = None if separator is None else encoder.id_of("separator", separator)
        self._stream = TokenStream(encoder, column, separator_id)
        if remainder not in ("drop", "pad"):
            raise ValueError(f"remainder={remainder!r}: expected 'drop' or 'pad'")
        self._pad: int | None = None
        if remainder == "pad":
            if pad is None and separator_id is None:
                raise ValueError("remainder='pad' needs the id to fill the last block with: pad=")
            self._pad = separator_id if pad is None else encoder.id_of("pad", pad)
        elif pad is not None:
            raise ValueError("pad= needs remainder='pad'")
        self._workers = check_workers(workers)
        self._table_starts: deque[_TableStart] = deque()
        # `seek` sets the first document, and how many of its tokens are in earlier tables. It also
        # sets the first block of the table, and how many blocks of the table are already written.
        self._first_block = self._skip_tokens = self._skip_blocks = self._first_document = 0
        self._pool: WorkerPool | None = None
        # The processes start before a part of data is opened, because a forked process cannot use
        # the threads of a store.
        self._start_workers()
        self._source = data
        if not isinstance(data, PartedInput):
            self._source = PartedInput([Part("data", lambda: data)])
        parts = self._source.parts
        description = {
            "block=": str(self.block), "column=": column,
            "separator=": str(separator_id), "pad=": str(self._pad),
        }  # fmt: skip
        super().__init__(parts, {**self._source.description, **description})
        self.samples = None

    @property
    def encoding(self) -> str:
        """The encoding of the blocks, such as ``"ndarray:uint16:2048"``."""
        return f"ndarray:{self._dtype.name}:{self.block}"

    def _start_workers(self) -> None:
        """Start the worker processes, if there are any and they do not run yet."""
        if self._workers and self._pool is None:
            # A worker returns each document as a stored sample of one column, the bytes of the ids.
            layout = parse_settings("mds", None, None, None, None, ()).new_format({"ids": "bytes"})
            self._pool = WorkerPool(self._workers, Task(self._stream, {}, False, (layout, False)))

    def close(self) -> None:
        """Stop the worker processes. This is also done when all blocks were read."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop()

    def __del__(self) -> None:
        if hasattr(self, "_pool"):
            self.close()

    # Positions

    def seek(self, position: tuple[str, int], number: int = 0) -> None:
        """Start at a position that `position` returned.

        Parameters
        ----------
        position : tuple of (str, int)
            The result of `position`.
        number : int, default: 0
            The number of the block at `position`.
        """
        try:
            part, tokens, blocks, document = json.loads(position[0])
        except ValueError:
            raise ValueError(
                f"the position {position[0]!r} is not one of token blocks: the interrupted write "
                "had other data"
            ) from None
        self._source.seek((part, position[1]), document)
        self._first_document, self._skip_tokens, self._skip_blocks = document, tokens, blocks
        self._first_block = number - blocks
        self._table_starts.clear()

    def position(self, number: int) -> tuple[str, int]:
        """Return the position of a block that was read.

        Parameters
        ----------
        number : int
            The number of the block. It must not be less than in an earlier call.

        Returns
        -------
        tuple of (str, int)
            The first item is JSON: the name of the part, the number of tokens to skip, the number
            of blocks to skip, and the number of the document in the input. The second item is the
            number of the document in its part.
        """
        while len(self._table_starts) > 1 and self._table_starts[1].block <= number:
            self._table_starts.popleft()
        start = self._table_starts[0]
        blocks = number - start.block
        return json.dumps([start.part, start.tokens, blocks, start.document]), start.offset

    # Blocks

    def read(
        self,
        names: Collection[str] | None = None,
        fill: Mapping[str, Fill] | None = None,
        *,
        check: bool = True,
        as_items: bool = False,
        may_be_empty: bool = False,
    ) -> TableStream:
        """Return the blocks as tables.

        Parameters
        ----------
        names, fill, check, as_items
            As for `PartedInput.read`; they do not change the blocks.
        may_be_empty
            As for `PartedInput.read`: whether there may be no tokens.

        Returns
        -------
        TableStream
        """
        self._start_workers()
        head = columns_of({self.name: np.empty((0, self.block), self._dtype)})
        return TableStream(
            head, (columns_of({self.name: rows}) for rows in self._arrays(may_be_empty))
        )

    def _arrays(self, may_be_empty: bool) -> Iterator[AnyArray]:
        """Yield arrays of several blocks, and record where each begins."""
        target = max(_TABLE_BYTES // (self.block * self._dtype.itemsize), 1) * self.block
        documents: deque[_Document] = deque()
        cursor = _Cursor(self._skip_tokens)
        # `total` is the number of tokens that were read and are not in a table yet.
        total, number, skip = -self._skip_tokens, self._first_block, self._skip_blocks
        try:
            for document in self._documents():
                if not document.ids.size:
                    continue
                documents.append(document)
                total += document.ids.size
                while total >= target:
                    yield from self._cut(documents, cursor, target, number, skip)
                    total, number, skip = total - target, number + target // self.block, 0
            whole = max(total, 0) // self.block * self.block
            if whole:
                yield from self._cut(documents, cursor, whole, number, skip)
                total, number, skip = total - whole, number + whole // self.block, 0
            if total > 0 and self._pad is not None:
                yield from self._cut(documents, cursor, total, number, skip)
                number += 1
            elif total > 0:
                log("%s after the last whole block are left out", quantity(total, "token"))
            if not number and not (may_be_empty and total <= 0):
                raise ValueError(
                    f"data has {quantity(max(total, 0), 'token')}, and a block has "
                    f"{self.block:,}: choose a smaller block, or remainder='pad'"
                )
        finally:
            self.close()

    def _cut(
        self, documents: deque[_Document], cursor: _Cursor, tokens: int, number: int, skip: int
    ) -> Iterator[AnyArray]:
        """Take tokens from the documents, and yield them as an array of blocks.

        `number` is that of the first block. The first `skip` blocks are not yielded.
        """
        first = documents[0]
        part, offset = self._source.position(first.number)
        self._table_starts.append(_TableStart(number, first.number, part, offset, cursor.tokens))
        ids = cursor.take(documents, tokens)
        if missing := -tokens % self.block:
            ids = np.concatenate([ids, np.full(missing, self._pad, self._dtype)])
        rows = ids.reshape(-1, self.block)[skip:]
        if len(rows):
            yield rows

    def _documents(self) -> Iterator[_Document]:
        """Yield the tokens of each document, in order."""
        column = self._stream.column
        samples: Any = self._source.read([column], {}, check=False, as_items=True)
        if isinstance(samples, TableStream):
            if column not in samples.head.names():
                raise ColumnError.saying(
                    f"the tables of data have no column {column!r}: name the text's column with "
                    "column="
                )
            samples = table_rows(samples)
        texts = (text_of(sample, column) for sample in samples)
        encode = self._encode_in_process if self._pool is None else self._encode_in_workers
        bodies: Iterator[Any] = encode(texts)
        for number, body in enumerate(bodies, self._first_document):
            yield _Document(number, np.frombuffer(body, self._dtype))

    def _encode_in_process(self, texts: Iterator[Any]) -> Iterator[bytes]:
        number = self._first_document
        while group := _group(texts):
            function = self._stream.for_batch(group)
            for text in group:
                for result in apply_map(function, text, number):
                    yield result["ids"]
                number += 1

    def _encode_in_workers(self, texts: Iterable[Any]) -> Iterator[Any]:
        assert self._pool is not None
        for result in self._pool.run(texts, self._first_document):
            data, sizes = result.encoded()
            ends = np.cumsum(sizes).tolist()
            start = 0
            for end in ends:
                # A sample of one column of bytes begins with its size, a uint32.
                yield data[start + 4 : end]
                start = end


def token_blocks(
    data: Any,
    tokenizer: Tokenizer,
    block: int,
    *,
    column: str = "text",
    separator: int | str | None = None,
    remainder: str = "drop",
    pad: int | str | None = None,
    name: str = "tokens",
    dtype: Any = None,
    batched: bool = False,
    workers: int = 0,
) -> TokenBlocks:
    """Return the token ids of documents in blocks of a fixed length, as data for `npstream.write`.

    The documents follow one another, each with the separator after it, and are cut every `block`
    tokens. The blocks do not depend on the number of worker processes. A document without tokens is
    left out.

    Parameters
    ----------
    data : iterable, table, Dataset or PartedInput
        Texts, or data that `npstream.write` takes and that has a column of texts.
    tokenizer : tokenizers.Tokenizer or callable
        As for `TokenMap`.
    block : int
        Number of tokens of a block.
    column : str, default: "text"
        The column of the text.
    separator : int or str, optional
        The id that is added after each document, such as that of an end-of-text token. For a
        tokenizer of a library, it can be the token itself. By default none is added.
    remainder : {"drop", "pad"}, default: "drop"
        Whether the tokens after the last whole block are left out, or are filled with `pad` to a
        block.
    pad : int or str, optional
        The id or token that fills the last block; by default the separator.
    name : str, default: "tokens"
        The column of the blocks.
    dtype : dtype, optional
        ``uint16`` or ``uint32``, as for `TokenMap`.
    batched : bool, default: False
        Whether the function takes a list of texts.
    workers : int, default: 0
        Number of processes that tokenize; 0 for this process. They start immediately.

    Returns
    -------
    TokenBlocks
        It is passed to `npstream.write` as `data`, without `map`.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid. `npstream.write` raises if an id does not fit `dtype`, or if all
        documents together have fewer tokens than a block.

    Examples
    --------
    >>> import npstream
    >>> blocks = token_blocks(["abc", "de", "f"], lambda text: list(text.encode()), 4, separator=0)
    >>> npstream.write("blocks", blocks).columns
    {'tokens': 'ndarray:uint32:4'}
    >>> npstream.open("blocks")["tokens"].load()
    array([[ 97,  98,  99,   0],
           [100, 101,   0, 102]], dtype=uint32)
    """
    return TokenBlocks(
        data, tokenizer, block, column=column, separator=separator, remainder=remainder, pad=pad,
        name=name, dtype=dtype, batched=batched, workers=workers,
    )  # fmt: skip


def _group(texts: Iterator[Any]) -> list[Any]:
    """Return the next documents, to be tokenized by one call."""
    group: list[Any] = []
    characters = 0
    for text in islice(texts, _GROUP):
        group.append(text)
        characters += len(text) if isinstance(text, str) else 0
        if characters >= _GROUP_CHARACTERS:
            break
    return group


class _Cursor:
    """The number of tokens that are already taken from the first document."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def take(self, documents: deque[_Document], count: int) -> AnyArray:
        """Return the next tokens.

        The document of the last token stays in `documents`, even if all its tokens are taken. The
        next table begins after that token, and records the document.
        """
        pieces = []
        while count:
            ids = documents[0].ids
            piece = ids[self.tokens : self.tokens + count]
            if len(piece):
                pieces.append(piece)
                count -= len(piece)
                self.tokens += len(piece)
            else:
                self.tokens -= ids.size
                documents.popleft()
        return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]

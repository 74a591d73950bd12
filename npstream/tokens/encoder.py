"""Provide `TokenEncoder`, which calls a tokenizer, and `TokenMap`, a `map=` function of `write`.

A group of texts is encoded by one call, if the tokenizer can do that.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from npstream._core.arguments import integer
from npstream._core.typing import AnyArray
from npstream.errors import ColumnError, short_repr

__all__ = ["TokenEncoder", "TokenMap", "Tokenizer"]

Tokenizer = Callable[[Any], Any]
"""A function from a text, or a list of texts, to ids; or a tokenizer of a known library."""

_DTYPES = tuple(np.dtype(name) for name in ("uint16", "uint32"))


class TokenEncoder:
    """Encodes texts as arrays of token ids.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer, or callable
    dtype : dtype, optional
        ``uint16`` or ``uint32``. By default ``uint16`` if all ids of the tokenizer fit, and
        ``uint32`` for functions, whose ids are unknown.
    batched : bool, default: False
        Whether a callable takes a list of texts.

    Attributes
    ----------
    dtype : dtype
    limit : int
        All ids are less than this.
    """

    def __init__(self, tokenizer: Any, dtype: Any = None, batched: bool = False) -> None:
        self._tokenizer = tokenizer
        self._kind = _library(tokenizer)
        if not self._kind and not callable(tokenizer):
            raise TypeError(
                f"tokenizer= is of type {type(tokenizer).__name__}: expected a callable from a "
                "text to its ids, or a tokenizers.Tokenizer, such as from Tokenizer.from_file, "
                "Tokenizer.from_pretrained or transformers.AutoTokenizer.from_pretrained"
            )
        self._batched = bool(batched)
        count = _id_count(tokenizer, self._kind)
        if dtype is None:
            dtype = "uint16" if count is not None and count <= 1 << 16 else "uint32"
        self.dtype = np.dtype(dtype)
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype {self.dtype}: token ids are stored as uint16 or uint32")
        self.limit = int(np.iinfo(self.dtype).max) + 1
        if count is not None and count > self.limit:
            raise ValueError(
                f"dtype {self.dtype} holds {self.limit:,} ids, and the tokenizer has {count:,}: "
                "choose uint32"
            )

    @property
    def encodes_batches(self) -> bool:
        """True if one call of the tokenizer encodes several texts."""
        return bool(self._kind) or self._batched

    def id_of(self, argument: str, token: int | str) -> int:
        """Return the id of a token, or check an id.

        Parameters
        ----------
        argument : str
            The name of the user's argument, for messages.
        token : int or str

        Raises
        ------
        TypeError, ValueError
            If there is no such token, or the id does not fit the dtype.
        """
        if isinstance(token, str):
            if not self._kind:
                raise TypeError(f"{argument}={token!r}: give its id, as tokenizer= is a function")
            vocabulary = self._tokenizer.get_vocab()
            if token not in vocabulary:
                raise ValueError(f"{argument}={token!r}: the tokenizer has no such token")
            token = vocabulary[token]
        number = integer(argument, token, 0)
        if number >= self.limit:
            raise ValueError(
                f"{argument}={number}: {self.dtype} holds ids of 0 to {self.limit - 1:,}"
            )
        return number

    def encode(self, texts: Sequence[str]) -> list[AnyArray]:
        """Return the ids of each text.

        Raises
        ------
        TypeError, ValueError
            If a text is not a `str`, or the tokenizer does not return one list of ids for each
            text, or an id does not fit `dtype`.
        """
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(
                    f"a tokenizer takes text, and this is of type {type(text).__name__}: "
                    f"{short_repr(text)}"
                )
        return [self._check_ids(ids) for ids in self._call(texts)]

    def _call(self, texts: Sequence[str]) -> Iterable[Any]:
        if self._kind == "tokenizers":
            if multiprocessing.parent_process() is not None:
                # A worker has one core, and threads of a parent do not survive a fork.
                os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
            encode = getattr(self._tokenizer, "encode_batch_fast", self._tokenizer.encode_batch)
            return [encoding.ids for encoding in encode(list(texts))]
        if not self.encodes_batches:
            return [_input_ids(self._tokenizer(text)) for text in texts]
        rows = _input_ids(self._tokenizer(list(texts)))
        if not hasattr(rows, "__len__") or len(rows) != len(texts):
            raise ValueError(
                f"the tokenizer returned {short_repr(rows)} for a list of {len(texts)} texts: "
                "expected a list of ids for each; batched=False calls it for each text"
            )
        return rows  # type: ignore[no-any-return]

    def _check_ids(self, ids: Any) -> AnyArray:
        """Return ids as an array of the dtype; raise if that is impossible."""
        array = np.asarray(ids)
        if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
            raise TypeError(
                f"the tokenizer returned {short_repr(ids)} for a text: expected a list of integers"
            )
        if array.size and (int(array.min()) < 0 or int(array.max()) >= self.limit):
            wrong = array[(array < 0) | (array >= self.limit)][0]
            raise ValueError(
                f"the tokenizer returned the id {wrong}, which {self.dtype} cannot hold: its ids "
                f"are 0 to {self.limit - 1:,}"
            )
        return array.astype(self.dtype, copy=False)


def _library(tokenizer: Any) -> str:
    """Return "tokenizers" or "transformers" for a tokenizer of that library, else ""."""
    # The library is not imported: the module name of a class identifies it.
    for kind in type(tokenizer).__mro__:
        package = kind.__module__.partition(".")[0]
        if package == "tokenizers" and hasattr(tokenizer, "encode_batch"):
            return package
        if package == "transformers" and hasattr(tokenizer, "batch_decode"):
            return package
    return ""


def _id_count(tokenizer: Any, library: str) -> int | None:
    """Return the largest id of a tokenizer plus 1; None for a function, whose ids are unknown."""
    if not library:
        return None
    return max(tokenizer.get_vocab().values(), default=0) + 1


def _input_ids(result: Any) -> Any:
    """Return the ids of a result; tokenizers of `transformers` return a mapping."""
    if isinstance(result, Mapping) or hasattr(result, "input_ids"):
        return result["input_ids"]
    return getattr(result, "ids", result)


class TokenMap:
    """Replaces the text of a sample by its token ids: a function for ``map=`` of `npstream.write`.

    In worker processes, one call encodes a batch of samples, if the tokenizer takes several texts.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer or callable
        A tokenizer of `tokenizers` or `transformers`, or a function from a text to its ids.
    column : str, default: "text"
        The column of the text.
    name : str, default: "tokens"
        The column of the ids, which takes the place of `column`.
    dtype : dtype, optional
        ``uint16`` or ``uint32``. By default ``uint16`` if all ids of the tokenizer fit, and
        ``uint32`` for functions, whose ids are unknown.
    batched : bool, default: False
        Whether the function takes a list of texts and returns a list of ids for each.

    Raises
    ------
    TypeError
        If `tokenizer` is neither callable nor a tokenizer of these libraries.
    ValueError
        If `dtype` is neither ``uint16`` nor ``uint32``, or too small for the ids of the tokenizer.

    Examples
    --------
    >>> import npstream
    >>> tokenize = TokenMap(lambda text: list(text.encode()), dtype="uint16")
    >>> samples = [{"text": "ab", "label": 1}, {"text": "c", "label": 2}]
    >>> npstream.write("letters", samples, map=tokenize).columns
    {'tokens': 'ndarray:uint16', 'label': 'int'}
    >>> npstream.open("letters")["tokens"][0]
    array([97, 98], dtype=uint16)
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        column: str = "text",
        *,
        name: str = "tokens",
        dtype: Any = None,
        batched: bool = False,
    ) -> None:
        self.column = column
        self.name = name
        self._encoder = TokenEncoder(tokenizer, dtype, batched)

    @property
    def encoding(self) -> str:
        """The encoding of the column of ids, such as ``"ndarray:uint16"``."""
        return f"ndarray:{self._encoder.dtype.name}"

    def __call__(self, sample: Any) -> dict[str, Any]:
        """Return the sample with ids in the place of its text."""
        return self._replace(sample, self._encoder.encode([text_of(sample, self.column)])[0])

    def for_batch(self, samples: Sequence[Any]) -> Callable[[Any], dict[str, Any]]:
        """Encode a batch of samples by one call of the tokenizer.

        For `npstream.writing.workers` only.

        Parameters
        ----------
        samples : sequence of mapping or str
            The samples.

        Returns
        -------
        callable
            Returns the result of a sample. Call it once for each sample, in the order of `samples`.
        """
        ids = _encode_group(self._encoder, samples, self.column)
        if ids is None:
            return self
        rows = iter(ids)
        return lambda sample: self._replace(sample, next(rows))

    def _replace(self, sample: Any, ids: AnyArray) -> dict[str, Any]:
        if isinstance(sample, str):
            return {self.name: ids}
        replaced = {}
        for key, value in sample.items():
            if key == self.column:
                replaced[self.name] = ids
            elif key == self.name:
                raise ValueError(
                    f"the sample has a column {key!r} already: name another for the ids with name="
                )
            else:
                replaced[key] = value
        return replaced


def text_of(sample: Any, column: str) -> Any:
    """Return the text of a sample, which may be the text itself."""
    if isinstance(sample, str):
        return sample
    if not isinstance(sample, Mapping):
        raise TypeError(
            f"a sample of type {type(sample).__name__}: a tokenizer needs a text, or a mapping "
            f"that has one as {column!r}"
        )
    if column not in sample:
        if not sample:
            raise ColumnError.saying(f"no column {column!r}: name the text's column with column=")
        raise ColumnError(column, sample, "column= names the column of the text: ")
    return sample[column]


def _encode_group(
    encoder: TokenEncoder, samples: Sequence[Any], column: str
) -> list[AnyArray] | None:
    """Return the ids of several samples by one call of the tokenizer.

    Return None if the tokenizer takes single texts only, or if the call fails. The caller then
    encodes each sample alone, so that an error names its sample.
    """
    if not encoder.encodes_batches or len(samples) == 1:
        return None
    try:
        return encoder.encode([text_of(sample, column) for sample in samples])
    except Exception:
        return None


class TokenStream:
    """Returns the ids of a sample as bytes, with the separator after them.

    `TokenBlocks` calls it for each document, in the worker processes if there are any.
    """

    def __init__(
        self,
        encoder: TokenEncoder,
        column: str,
        separator: int | None,
    ) -> None:
        self.encoder = encoder
        self.column = column
        self._end = b"" if separator is None else np.array([separator], encoder.dtype).tobytes()

    def __call__(self, sample: Any) -> dict[str, bytes]:
        return self._to_document(self.encoder.encode([text_of(sample, self.column)])[0])

    def for_batch(self, samples: Sequence[Any]) -> Callable[[Any], dict[str, bytes]]:
        """Encode a batch of samples by one call of the tokenizer, as `TokenMap.for_batch`."""
        ids = _encode_group(self.encoder, samples, self.column)
        if ids is None:
            return self
        rows = iter(ids)
        return lambda sample: self._to_document(next(rows))

    def _to_document(self, ids: AnyArray) -> dict[str, bytes]:
        """Return the bytes of a document. A document without tokens has no separator."""
        return {"ids": ids.tobytes() + self._end if ids.size else b""}

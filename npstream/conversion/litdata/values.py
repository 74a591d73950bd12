"""The values in LitData's chunks: how each of its serializers stores them.

A sample is a tree of dicts, lists and tuples. Its leaves are stored one after another.
``index.json`` names the serializer of each leaf. Nothing is unpickled: a pickled value stays bytes.

The format follows https://github.com/Lightning-AI/litData, version 0.2.76.

Tested in tests/conversion/litdata/test_source.py.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np

from npstream._core.arguments import quantity
from npstream._core.dtypes import dtype_of
from npstream.conversion.file_samples.types import parse_image, parse_text
from npstream.errors import FormatError, short_repr

__all__ = ["Leaf", "leaf_names", "leaf_of"]

_NUMPY_DTYPES = (
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128", "bool"),
)
"""The dtypes of arrays by their number in LitData. The next numbers are objects and text."""

_TORCH_DTYPES = (
    *("float32", "float32", "float64", "float64", "complex64", "complex64", "complex128"),
    *("complex128", "float16", "float16", "bfloat16", "uint8", "int8", "int16", "int16"),
    *("int32", "int32", "int64", "int64", "bool", "uint16"),
)
"""The dtypes of tensors by their number in LitData.

Aliases in torch, such as `torch.float` of `torch.float32`, have numbers of their own.
"""

_MAX_NDIM = 32
_MAX_DEPTH = 100

_TREE_ERRORS = (TypeError, KeyError, IndexError, AttributeError, RecursionError)
"""The exceptions of `_leaf_paths` for JSON that is not a tree of samples."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A value of a sample.

    Attributes
    ----------
    name : str
        The column: the keys and positions of the leaf in the tree, joined by dots.
    serializer : str
        Its entry in ``data_format``.
    encoding : str or None
        The encoding of the column. If it is None, the first value determines the encoding.
    parse : callable
        Converts the stored bytes to the value, or raises ValueError.
    """

    name: str
    serializer: str
    encoding: str | None
    parse: Callable[[bytes], Any]


def leaf_of(name: str, serializer: str) -> Leaf:
    """Return the leaf that an entry of ``data_format`` describes.

    Raises
    ------
    ValueError
        If there is no such serializer.

    Examples
    --------
    >>> leaf_of("x", "int").encoding, leaf_of("x", "no_header_numpy:4").encoding
    ('int', 'ndarray:uint8')
    """
    kind, _, detail = serializer.partition(":")
    if kind in ("no_header_numpy", "no_header_tensor"):
        names = _NUMPY_DTYPES if kind == "no_header_numpy" else _TORCH_DTYPES
        dtype = _dtype(names, int(detail) if detail.isdecimal() else -1)
        return Leaf(name, serializer, f"ndarray:{dtype.name}", partial(_parse_flat, dtype))
    if kind in _PARSERS:
        encoding, parse = _PARSERS[kind]
        if kind == "image" and detail in ("jpg", "jpeg"):
            encoding = "jpeg"
        return Leaf(name, serializer, encoding, parse)
    raise ValueError(
        f"column {name!r} was written by the serializer {serializer!r}, which is not one of "
        "LitData's own: read the data with litdata, and give the samples to npstream.write"
    )


def leaf_names(spec: str | None, count: int) -> list[str]:
    """Return the names of the leaves of a tree.

    Parameters
    ----------
    spec : str or None
        The ``data_spec`` of the index: JSON of the version, 1, and the tree.
    count : int
        The number of leaves. Without a spec, several leaves are named by their positions.

    Raises
    ------
    FormatError
        If the spec is damaged, has another number of leaves, or has two leaves of the same name.
    ValueError
        If a node has a type that LitData alone knows.

    Examples
    --------
    >>> leaf = {"type": None, "context": None, "children_spec": []}
    >>> tree = {"type": "builtins.dict", "context": '["a", "b"]', "children_spec": [leaf, leaf]}
    >>> leaf_names(json.dumps([1, tree]), 2), leaf_names(json.dumps([1, leaf]), 1)
    (['a', 'b'], ['value'])
    """
    if spec is None:
        names = [str(number) for number in range(count)] if count != 1 else ["value"]
    else:
        try:
            version, tree = json.loads(spec)
            names = [".".join(path) or "value" for path in _leaf_paths(tree, ())]
        except (json.JSONDecodeError, *_TREE_ERRORS) as error:
            raise FormatError(f"data_spec cannot be parsed: {error!r}") from error
        if version != 1:
            raise FormatError(f"data_spec of version {short_repr(version)}: expected 1")
    if len(names) != count:
        raise FormatError(
            f"data_spec has {quantity(len(names), 'value')}, and data_format {count:,}"
        )
    for number, name in enumerate(names):
        if name in names[:number]:
            raise FormatError(f"two values of a sample would be the column {name!r}")
    return names


def _leaf_paths(node: Mapping[str, Any], path: tuple[str, ...]) -> list[tuple[str, ...]]:
    kind, children = node["type"], node["children_spec"]
    if kind is None:
        return [path]
    context = node["context"]
    if kind in ("builtins.dict", "collections.OrderedDict"):
        keys = json.loads(context)
    elif kind == "collections.defaultdict":
        keys = (json.loads(context) if isinstance(context, str) else context)["dict_context"]
    elif kind in ("builtins.list", "builtins.tuple", "collections.deque"):
        keys = range(len(children))
    else:
        raise ValueError(
            f"samples hold a {kind}, which only litdata can read: read them with litdata, and "
            "give them to npstream.write as dicts"
        )
    if len(keys) != len(children):
        raise FormatError(f"data_spec: {len(keys):,} keys for {quantity(len(children), 'value')}")
    return [
        leaf
        for key, child in zip(keys, children, strict=True)
        for leaf in _leaf_paths(child, (*path, str(key)))
    ]


def _dtype(names: tuple[str, ...], number: int) -> np.dtype[Any]:
    if not 0 <= number < len(names):
        raise ValueError(f"arrays of LitData's dtype number {number}, which has no fixed size")
    return dtype_of(names[number])


def _parse_flat(dtype: np.dtype[Any], body: bytes) -> np.ndarray[Any, Any]:
    if len(body) % dtype.itemsize:
        raise ValueError(f"{quantity(len(body), 'byte')} are no whole number of {dtype}")
    return np.frombuffer(body, dtype)


def _parse_array(names: tuple[str, ...], order: str, body: bytes) -> np.ndarray[Any, Any]:
    """Return an array. The bytes begin with the number of its dtype, its ndim and its shape."""
    try:
        number, ndim = struct.unpack_from(f"{order}II", body)
        if ndim > _MAX_NDIM:
            raise ValueError(f"an array of {ndim:,} dimensions")
        shape = struct.unpack_from(f"{order}{ndim}I", body, 8)
    except struct.error as error:
        raise ValueError(f"{quantity(len(body), 'byte')} are too few for an array") from error
    dtype, data = _dtype(names, number), memoryview(body)[8 + 4 * ndim :]
    if prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{quantity(len(data), 'byte')} for shape {shape} of {dtype}")
    return np.frombuffer(data, dtype).reshape(shape)


def _parse_struct(code: str, body: bytes) -> Any:
    try:
        return struct.unpack(code, body)[0]
    except struct.error as error:
        raise ValueError(f"{quantity(len(body), 'byte')}: {error}") from error


def _parse_json(body: bytes) -> Any:
    """Return a value of nested lists and dicts, in LitData's binary form or as JSON."""
    try:
        # The binary form begins with the number of a type, which is at most 11.
        if not body or body[0] > 0x20:
            return json.loads(body)
        reader = _NestedReader(body)
        value = reader.value()
    except (struct.error, IndexError, RecursionError) as error:
        raise ValueError(f"a nested value that is damaged: {error}") from error
    if reader.position != len(body):
        raise ValueError(
            f"a nested value is followed by {quantity(len(body) - reader.position, 'byte')}"
        )
    return value


class _NestedReader:
    """Reads nested values; each begins with the number of its type."""

    def __init__(self, body: bytes) -> None:
        self.body, self.position, self._depth = body, 0, 0

    def value(self) -> Any:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ValueError("a value that is nested too deeply")
        kind = self._take(1)[0]
        if kind not in _NESTED:
            raise ValueError(f"a nested value of the unknown type {kind}")
        result = _NESTED[kind](self)
        self._depth -= 1
        return result

    def _take(self, count: int) -> bytes:
        data = self.body[self.position : self.position + count]
        if len(data) != count:
            raise ValueError(f"{quantity(len(data), 'byte')} of {count:,}: it is truncated")
        self.position += count
        return data

    def _number(self, code: str) -> Any:
        return struct.unpack(code, self._take(struct.calcsize(code)))[0]

    def _count(self) -> int:
        """Return the number of values that follow. Raise if fewer bytes than values are left."""
        count: int = self._number("<I")
        if count > len(self.body) - self.position:
            raise ValueError(
                f"{quantity(count, 'value')} in {quantity(len(self.body) - self.position, 'byte')}"
            )
        return count

    def _text(self) -> str:
        return parse_text(self._take(self._number("<I")))

    def _array(self, dtype: str) -> list[Any]:
        count = self._count()
        values: list[Any] = np.frombuffer(
            self._take(count * np.dtype(dtype).itemsize), dtype
        ).tolist()
        return values

    def _texts(self) -> list[str]:
        return [self._text() for _ in range(self._count())]

    def _dict(self) -> dict[str, Any]:
        return {self._text(): self.value() for _ in range(self._count())}

    def _records(self) -> list[dict[str, Any]]:
        """Return dicts with the same keys. The keys are stored once, before the values."""
        count = self._number("<I")
        keys = [self._text() for _ in range(self._count())]
        if count * len(keys) > len(self.body) - self.position or not keys:
            raise ValueError(f"{count:,} records of {len(keys):,} keys: it is truncated")
        return [{key: self._scalar() for key in keys} for _ in range(count)]

    def _scalar(self) -> Any:
        kind = self._take(1)[0]
        if kind not in _SCALARS:
            raise ValueError(f"a nested value of the unknown type {kind}")
        return _SCALARS[kind](self)

    def _json(self) -> Any:
        return json.loads(self._take(self._number("<I")))

    def _bool(self) -> bool:
        return self._take(1) != b"\0"


_NESTED: Mapping[int, Callable[[_NestedReader], Any]] = {
    0: _NestedReader._json,
    1: _NestedReader._texts,
    2: lambda reader: reader._array("<i8"),
    3: lambda reader: reader._array("<f8"),
    4: lambda reader: reader._array("?"),
    5: _NestedReader._dict,
    6: _NestedReader._records,
    7: _NestedReader._text,
    8: lambda reader: reader._number("<q"),
    9: lambda reader: reader._number("<d"),
    10: _NestedReader._bool,
    11: lambda reader: None,
}

_SCALARS: Mapping[int, Callable[[_NestedReader], Any]] = {
    0x10: lambda reader: None,
    0x11: _NestedReader._text,
    0x12: lambda reader: reader._number("<q"),
    0x13: lambda reader: reader._number("<d"),
    0x14: _NestedReader._bool,
}


def _parse_bytes(body: bytes) -> bytes:
    return body


_PARSERS: dict[str, tuple[str | None, Callable[[bytes], Any]]] = {
    "str": ("str", parse_text),
    "text": ("str", parse_text),
    "bool": ("bool", partial(_parse_struct, "?")),
    "int": ("int", partial(_parse_struct, "<q")),
    "float": ("float64", partial(_parse_struct, "<d")),
    "json": ("json", _parse_json),
    "numpy": (None, partial(_parse_array, _NUMPY_DTYPES, "<")),
    "tensor": (None, partial(_parse_array, _TORCH_DTYPES, ">")),
    "jpeg": ("jpeg", parse_image),
    "image": ("png", parse_image),
    # LitData stores the same bytes as the encodings "pil" and "jpeg_array".
    "pil": ("pil", _parse_bytes),
    "jpeg_array": ("jpeg_array", _parse_bytes),
    **dict.fromkeys(
        (
            *("bytes", "file", "tiff", "tifffile", "video", "audio", "nifti", "mesh", "pdf"),
            *("graph", "pickle"),
        ),
        ("bytes", _parse_bytes),
    ),
}

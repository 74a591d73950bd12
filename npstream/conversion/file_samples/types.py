"""Convert the content of a file to a value: text, a number, JSON, an image or an array.

The extension of the file's name decides the type. Tars and folders, whose samples consist of files,
use this module. Nothing is unpickled. An image file is stored as it is; it is decoded only if the
user chooses the encoding "pil".
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import msgpack
import numpy as np

from npstream._core.arguments import quantity
from npstream._core.memory import ensure_fits
from npstream.formats.encodings.encodings import Encoding, column_type, infer
from npstream.formats.encodings.images import decode_file

__all__ = [
    "MAX_BYTES",
    "FileType",
    "array_encoding",
    "choose_type",
    "file_type",
    "image_format",
    "parse_image",
    "parse_npy",
    "parse_text",
]

MAX_BYTES = (1 << 32) - 1
"""The largest value that a shard can store; its offsets are uint32."""

_BLOCK = 1 << 20

_SIGNATURES = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
)
"""The first bytes of image files that an image column can decode, and their formats."""

_INTEGER = re.compile(rb"\s*[+-]?[0-9]+\s*")


@dataclass(frozen=True, slots=True)
class FileType:
    """How the content of a file becomes a value.

    Attributes
    ----------
    encoding : str or None
        The encoding of its column. If it is None, the first value determines the encoding.
    parse : callable
        Converts the bytes of a file to a value of the column, or raises ValueError.
    """

    encoding: str | None
    parse: Callable[[bytes], Any]


def file_type(extension: str) -> FileType:
    """Return the type of the files with an extension; type "bytes" if it is not known.

    Parameters
    ----------
    extension : str
        In any letter case, and without the first dot. Only its last part counts, as in
        ``"left.jpg"``. ``".gz"`` after a known extension means that the file is compressed.

    Examples
    --------
    >>> file_type("cls").parse(b"7"), file_type("json").encoding, file_type("caption.txt").encoding
    (7, 'json', 'str')
    >>> file_type("jpg").encoding, file_type("xyz").encoding, file_type("txt.gz").encoding
    ('jpeg', 'bytes', 'str')
    """
    parts = extension.lower().split(".")
    kind = _TYPES.get(parts[-1])
    if kind is not None:
        return kind
    if parts[-1] == "gz" and len(parts) > 1 and (kind := _TYPES.get(parts[-2])) is not None:
        return replace(kind, parse=partial(_parse_gz, kind.parse))
    return _BYTES


def choose_type(extension: str, encoding: str) -> FileType:
    """Return the type of files whose column has an encoding that the user chose.

    Parameters
    ----------
    extension : str
        As for `file_type`. It says how to parse JSON, MessagePack and arrays.
    encoding : str
        The name of an encoding. For an encoding of numbers, text is parsed as a number.

    Examples
    --------
    >>> choose_type("cls", "str").parse(b"7"), choose_type("txt", "float32").parse(b"0.5")
    ('7', 0.5)
    >>> choose_type("json", "bytes").parse(b"[]")
    b'[]'
    """
    target, default = column_type(encoding), file_type(extension)
    if default.encoding == encoding:
        return default
    is_array_file = default.encoding is None
    if target.kind in ("fixed", "ndarray"):
        parse = default.parse if is_array_file else _number_parser(target)
    elif target.kind == "str":
        parse = parse_text
    elif encoding == "json":
        parse = _parse_json
    elif encoding == "pil":
        parse = decode_file  # a value of "pil" is decoded pixels, not a file
    elif target.kind == "image":
        parse = parse_image
    elif encoding in ("bytes", "pkl"):
        return FileType(encoding, _parse_bytes)
    else:
        return FileType(encoding, partial(_parse_encoded, target))
    if extension.lower().endswith(".gz") and not is_array_file:
        parse = partial(_parse_gz, parse)
    return FileType(encoding, parse)


def image_format(body: bytes) -> str | None:
    """Return the format of an image file by its first bytes; None if it is not an image.

    Examples
    --------
    >>> image_format(b"GIF89a"), image_format(b"<html>")
    ('gif', None)
    """
    for signature, name in _SIGNATURES:
        if body.startswith(signature):
            return name
    return "webp" if body[:4] == b"RIFF" and body[8:12] == b"WEBP" else None


def array_encoding(array: np.ndarray[Any, Any]) -> str:
    """Return the encoding of a column whose first value is an array from a file.

    Raises
    ------
    TypeError, ValueError
        If no column stores arrays of the dtype.

    Examples
    --------
    >>> array_encoding(np.zeros((2, 0))), array_encoding(np.array(3, np.int8))
    ('ndarray:float64', 'int8')
    """
    # `infer` refuses an empty array, but its dtype and number of axes are enough. So an array with
    # one element stands for it.
    one = np.empty((1,) * array.ndim, array.dtype)
    return infer(one[()] if array.ndim == 0 else one).name


def parse_npy(body: bytes) -> np.ndarray[Any, Any]:
    """Return the array in a ``.npy`` file, without a copy.

    Raises
    ------
    ValueError
        If the file is damaged, or holds Python objects, which would have to be unpickled.
    """
    file = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"version {version} of the format, which is for structured arrays")
    except Exception as error:
        # NumPy evaluates the header, and may raise any exception for a damaged one.
        raise ValueError(f"not an array of NumPy: {error}") from error
    if dtype.hasobject:
        raise ValueError("an array of Python objects, which are not unpickled")
    data = memoryview(body)[file.tell() :]
    if not dtype.itemsize or min(shape, default=0) < 0 or prod(shape) * dtype.itemsize != len(data):
        raise ValueError(
            f"not an array of NumPy: {quantity(len(data), 'byte')} for shape {shape} of {dtype}"
        )
    values = np.frombuffer(data, dtype)
    return values.reshape(shape[::-1]).T if is_fortran else values.reshape(shape)


def _parse_bytes(body: bytes) -> bytes:
    return body


def _parse_encoded(encoding: Encoding, body: bytes) -> bytes:
    """Return the bytes of a file that holds an encoded value."""
    try:
        encoding.decode(body)
    except Exception as error:
        # A decoder that the user registered may raise any exception.
        raise ValueError(f"no value of {encoding.name!r}: {error}") from error
    return body


def parse_text(body: bytes) -> str:
    """Return UTF-8 as text."""
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None


def _parse_integer(body: bytes) -> int:
    if _INTEGER.fullmatch(body) is None:
        raise ValueError(f"not an integer: {_start(body)}")
    return int(body)


def _parse_float(body: bytes) -> float:
    try:
        return float(body)
    except ValueError:
        raise ValueError(f"not a number: {_start(body)}") from None


def _parse_bool(body: bytes) -> bool:
    value = {b"0": False, b"1": True, b"false": False, b"true": True}.get(body.strip().lower())
    if value is None:
        raise ValueError(f"neither true nor false: {_start(body)}")
    return value


def _parse_json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None


def _parse_msgpack(body: bytes) -> Any:
    try:
        return msgpack.unpackb(body)
    except Exception as error:
        # The parser may raise any exception for damaged data. A ValueError may have no message.
        raise ValueError(f"not MessagePack: {error or type(error).__name__}") from error


def parse_image(body: bytes) -> bytes:
    """Return an image file as it is; raise ValueError if its first bytes are of no image."""
    if image_format(body) is None:
        raise ValueError(
            f"not an image: {_start(body)}" if body else "not an image: the file is empty"
        )
    return body


def _parse_gz(parse: Callable[[bytes], Any], body: bytes) -> Any:
    out, next_check = io.BytesIO(), _BLOCK
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as file:
            while block := file.read(_BLOCK):
                out.write(block)
                if out.tell() > MAX_BYTES:
                    raise ValueError("more than 4 GiB when decompressed")
                if out.tell() > next_check:
                    next_check *= 2
                    ensure_fits(2 * next_check, "decompressing a file")
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"not gzip: {error}") from None
    return parse(out.getvalue())


def _number_parser(encoding: Encoding) -> Callable[[bytes], Any]:
    """Return the parser of text for a column of numbers."""
    if encoding.shape != ():
        return _refuse_array
    parsers = {"b": _parse_bool, "i": _parse_integer, "u": _parse_integer, "f": _parse_float}
    return parsers.get(encoding.dtype.kind, _refuse_number)


def _refuse_array(body: bytes) -> Any:
    raise ValueError("only .npy files become arrays: choose 'bytes' or 'json' in columns=")


def _refuse_number(body: bytes) -> Any:
    raise ValueError("text does not become such a number: choose 'str' in columns=, and use map=")


def _start(body: bytes) -> str:
    return f"it starts with {body[:16]!r}" if len(body) > 16 else repr(body)


_BYTES = FileType("bytes", _parse_bytes)

_TYPES = {
    **dict.fromkeys(("txt", "text", "transcript", "htm", "html"), FileType("str", parse_text)),
    **dict.fromkeys(
        ("cls", "cls2", "class", "count", "index", "inx", "id"), FileType("int", _parse_integer)
    ),
    **dict.fromkeys(("json", "jsn"), FileType("json", _parse_json)),
    **dict.fromkeys(("mp", "msg", "msgpack"), FileType("json", _parse_msgpack)),
    "npy": FileType(None, parse_npy),
    **dict.fromkeys(("jpg", "jpeg", "jpe", "jfif"), FileType("jpeg", parse_image)),
    # Both encodings of image files store and decode files of any format.
    **dict.fromkeys(("png", "webp", "gif", "bmp", "tif", "tiff"), FileType("png", parse_image)),
}
"""The types of files by extension; those of `webdataset`, without its pickles and tensors."""

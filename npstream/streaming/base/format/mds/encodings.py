"""Provide the encodings of MDS as classes, and the mapping where users add their own.

Adding a class to `_encodings` registers its encoding, as `npstream.register_encoding` does. The
encoding is then valid in the whole process, also for `npstream.open`.

Tested in tests/streaming/test_mds_encodings.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, MutableMapping
from typing import Any, ClassVar, Self

from npstream.formats.encodings.encodings import (
    is_unsafe,
    own_encoding,
    parse,
    reset_encoding,
    set_encoding,
)

__all__ = [
    "Encoding",
    "get_mds_encoded_size",
    "get_mds_encodings",
    "is_mds_encoding",
    "is_mds_encoding_safe",
    "mds_decode",
    "mds_encode",
]


class Encoding(ABC):
    """The base class of encodings.

    The constructor of a subclass must not require arguments, because npstream calls it without any.
    One instance of the subclass encodes and decodes all values.

    Attributes
    ----------
    size : int or None
        Bytes of each encoded value; None if values differ in size.
    """

    size: int | None = None

    @abstractmethod
    def encode(self, obj: Any) -> bytes:
        """Return the encoded bytes of a value."""

    @abstractmethod
    def decode(self, data: bytes) -> Any:
        """Return the value that bytes encode."""

    @staticmethod
    def _validate(data: Any, expected_type: Any) -> None:
        if not isinstance(data, expected_type):
            raise ValueTypeError(f"a value of type {type(data).__name__}: expected {expected_type}")


class ValueTypeError(TypeError, AttributeError):
    """A value has the wrong type.

    npstream raises TypeError for such a value, and Streaming raises AttributeError. This class is
    both, so programs for either can catch it.
    """


class _OwnEncoding(Encoding):
    """A built-in encoding of npstream. Each subclass sets the name of its encoding."""

    _name: ClassVar[str]

    def __init_subclass__(cls, name: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if name:
            cls._name = name

    def __init__(self) -> None:
        self._use(self._name)

    def _use(self, name: str) -> None:
        self._encoding = own_encoding(name)
        self.size = self._encoding.size

    def encode(self, obj: Any) -> bytes:
        try:
            is_stored_as_is = isinstance(obj, bytes) and self._encoding.kind == "bytes"
            return obj if is_stored_as_is else self._encoding.encoder(obj)
        except TypeError as error:
            raise ValueTypeError(*error.args) from error

    def decode(self, data: bytes) -> Any:
        return self._encoding.decode(data)


class Bytes(_OwnEncoding, name="bytes"):
    """Bytes, stored unchanged."""


class Str(_OwnEncoding, name="str"):
    """Text as UTF-8."""


class Int(_OwnEncoding, name="int"):
    """An integer of 8 bytes."""


class NDArray(_OwnEncoding, name="ndarray"):
    """An array.

    Parameters
    ----------
    dtype : str, optional
        The dtype of all arrays. By default each array records its own.
    shape : tuple of int, optional
        The shape of all arrays; requires `dtype`. By default each array records its own.
    """

    def __init__(self, dtype: str | None = None, shape: tuple[int, ...] | None = None) -> None:
        if shape is not None and dtype is None:
            raise ValueError(f"shape={shape}: give dtype=, too")
        self.dtype, self.shape = dtype, shape
        dims = None if shape is None else ",".join(map(str, shape))
        self._use(":".join(part for part in ("ndarray", dtype, dims) if part is not None))

    @classmethod
    def from_str(cls, text: str) -> Self:
        """Return the encoding of the text after ``ndarray:``, such as "uint16:2,3"."""
        dtype, _, dims = text.partition(":")
        return cls(dtype or None, tuple(map(int, dims.split(","))) if dims else None)


class UInt8(_OwnEncoding, name="uint8"):
    """A number of the dtype uint8."""


class UInt16(_OwnEncoding, name="uint16"):
    """A number of the dtype uint16."""


class UInt32(_OwnEncoding, name="uint32"):
    """A number of the dtype uint32."""


class UInt64(_OwnEncoding, name="uint64"):
    """A number of the dtype uint64."""


class Int8(_OwnEncoding, name="int8"):
    """A number of the dtype int8."""


class Int16(_OwnEncoding, name="int16"):
    """A number of the dtype int16."""


class Int32(_OwnEncoding, name="int32"):
    """A number of the dtype int32."""


class Int64(_OwnEncoding, name="int64"):
    """A number of the dtype int64."""


class Float16(_OwnEncoding, name="float16"):
    """A number of the dtype float16."""


class Float32(_OwnEncoding, name="float32"):
    """A number of the dtype float32."""


class Float64(_OwnEncoding, name="float64"):
    """A number of the dtype float64."""


class StrInt(_OwnEncoding, name="str_int"):
    """An integer as text."""


class StrFloat(_OwnEncoding, name="str_float"):
    """A float as text."""


class StrDecimal(_OwnEncoding, name="str_decimal"):
    """A `decimal.Decimal` as text."""


class PIL(_OwnEncoding, name="pil"):
    """The pixels of an image."""


class JPEG(_OwnEncoding, name="jpeg"):
    """An image as a JPEG file."""


class JPEGArray(_OwnEncoding, name="jpeg_array"):
    """A list of JPEG files. `encode` takes the bytes of each file; `decode` returns images."""


class PNG(_OwnEncoding, name="png"):
    """An image as a PNG file."""


class PILList(_OwnEncoding, name="list[pil]"):
    """A list of images, as their pixels."""


class JPEGList(_OwnEncoding, name="list[jpeg]"):
    """A list of images, as JPEG files."""


class PNGList(_OwnEncoding, name="list[png]"):
    """A list of images, as PNG files."""


class Pickle(_OwnEncoding, name="pkl"):
    """Any object as a pickle, which can run code when it is loaded."""


class JSON(_OwnEncoding, name="json"):
    """Any value that JSON can store."""


_OWN_CLASSES: tuple[type[_OwnEncoding], ...] = (
    Bytes, Str, Int, NDArray, UInt8, UInt16, UInt32, UInt64, Int8, Int16, Int32, Int64, Float16,
    Float32, Float64, StrInt, StrFloat, StrDecimal, PIL, JPEG, JPEGArray, PNG, PILList, JPEGList,
    PNGList, Pickle, JSON,
)  # fmt: skip


class EncodingClasses(MutableMapping[str, Any]):
    """A mapping from the names of encodings to their classes.

    Setting an entry registers its encoding in this process. Deleting the entry removes the encoding
    again. If the encoding had replaced a built-in one of npstream, the built-in one is valid again.
    """

    def __init__(self) -> None:
        self._own: dict[str, Any] = {cls._name: cls for cls in _OWN_CLASSES}
        self._own["jpegarray"] = JPEGArray
        self._set: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        return self._set[name] if name in self._set else self._own[name]

    def __setitem__(self, name: str, cls: Any) -> None:
        if cls is self._own.get(name):
            self._set.pop(name, None)
            reset_encoding(name)
            return
        coder = cls()
        if not callable(getattr(coder, "encode", None)):
            raise TypeError(
                f"_encodings[{name!r}]: expected a class with the methods encode and decode, such "
                f"as a subclass of Encoding, not {cls!r}"
            )
        set_encoding(name, coder.encode, coder.decode, size=getattr(coder, "size", None))
        self._set[name] = cls

    def __delitem__(self, name: str) -> None:
        if name not in self._set:
            raise KeyError(name)
        del self._set[name]
        reset_encoding(name)

    def __iter__(self) -> Iterator[str]:
        return iter({**self._own, **self._set})

    def __len__(self) -> int:
        return len({**self._own, **self._set})

    def __repr__(self) -> str:
        return repr({**self._own, **self._set})


_encodings = EncodingClasses()


def get_mds_encodings() -> set[str]:
    """Return the names of all encodings.

    Returns
    -------
    set of str

    Examples
    --------
    >>> "jpeg" in get_mds_encodings()
    True
    """
    return set(_encodings)


def is_mds_encoding(encoding: str) -> bool:
    """Return True if an encoding with a given name exists.

    Parameters
    ----------
    encoding : str
        The name.

    Returns
    -------
    bool

    Examples
    --------
    >>> is_mds_encoding("ndarray:uint16"), is_mds_encoding("pngg")
    (True, False)
    """
    try:
        parse(encoding)
    except ValueError:
        return False
    return True


def is_mds_encoding_safe(encoding: str) -> bool:
    """Return True unless decoding can run code from the data.

    Parameters
    ----------
    encoding : str
        The name.

    Returns
    -------
    bool

    Examples
    --------
    >>> is_mds_encoding_safe("json"), is_mds_encoding_safe("pkl")
    (True, False)
    """
    return not is_unsafe(encoding)


def get_mds_encoded_size(encoding: str) -> int | None:
    """Return the number of bytes of each encoded value; None if values differ in size.

    Parameters
    ----------
    encoding : str
        The name.

    Returns
    -------
    int or None

    Raises
    ------
    ValueError
        If there is no such encoding.

    Examples
    --------
    >>> get_mds_encoded_size("int"), get_mds_encoded_size("str")
    (8, None)
    """
    return parse(encoding).size


def mds_encode(encoding: str, obj: Any) -> bytes:
    r"""Return the encoded bytes of a value; a value of type bytes is returned unchanged.

    Parameters
    ----------
    encoding : str
        The name.
    obj : Any
        The value.

    Returns
    -------
    bytes

    Raises
    ------
    ValueError
        If there is no such encoding, or it cannot store the value exactly.
    TypeError
        If the value has the wrong type. The error is an AttributeError, too.

    Examples
    --------
    >>> mds_encode("uint16", 258)
    b'\x02\x01'
    """
    try:
        return parse(encoding).encode(obj)
    except TypeError as error:
        raise ValueTypeError(*error.args) from error


def mds_decode(encoding: str, data: bytes) -> Any:
    r"""Return the value that bytes encode.

    Parameters
    ----------
    encoding : str
        The name.
    data : bytes
        The encoded bytes of a value, such as those that `mds_encode` returns.

    Returns
    -------
    Any

    Raises
    ------
    ValueError
        If there is no such encoding, or the bytes are invalid.

    Examples
    --------
    >>> mds_decode("uint16", b"\2\1")
    np.uint16(258)
    """
    return parse(encoding).decode(data)

"""Provide `ImageOptions`, the checked options of decoding, and the geometry of resize and crop.

Tested in tests/reading/images/test_options.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from npstream._core.arguments import integer
from npstream.errors import ColumnError, short_repr

if TYPE_CHECKING:
    from npstream.reading.plan import Field

IMAGE_MODES = ("RGB", "L", "RGBA", None)
"""Values of `mode`, with None for the image's own mode."""

CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4, None: 3}
"""Mode -> its number of channels; for None that of most images."""

CROPS = ("center", "random", None)
FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")

Size: TypeAlias = "tuple[int, int]"
"""Height and width, in pixels."""

Decode: TypeAlias = "bool | str | Sequence[str] | Mapping[str, bool | Mapping[str, Any]]"
"""The parameter `decode` of `npstream.Dataset.load` and `npstream.Dataset.iter`."""


class Geometry(NamedTuple):
    """The resize and the crop of one image.

    Attributes
    ----------
    size : tuple of int
        Height and width of the whole image after the resize.
    top, left : int
        The first pixel of the crop in the resized image.
    height, width : int
        The size of the result.
    """

    size: Size
    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """How the images of a column are decoded.

    Parameters
    ----------
    mode : {"RGB", "L", "RGBA", None}, default: "RGB"
        The mode of the pixels; None keeps the mode of each image.
    resize : int or (int, int), optional
        The length of the shorter side, or height and width.
    crop : {"center", "random"}, optional
        Where to cut out a part of `crop_size`. The default is "center" if `crop_size` is given;
        otherwise there is no crop.
    crop_size : int or (int, int), optional
        The size of the crop: the side of a square, or height and width. The default is the value of
        `resize`. If that is a height and a width, the image keeps its aspect ratio: it is resized
        to the smallest size that contains the crop.
    resample : str, default: "bilinear"
        The filter of `resize`, one of Pillow's, in lower case.
    draft : bool, default: True
        Whether JPEG files are decoded at 1/2, 1/4 or 1/8 of their size if that is at least twice
        the size after `resize`. With ``resample="nearest"``, they are decoded at their full size.
    transform : callable, optional
        Takes the decoded array of an image, and returns another array. Runs in the threads.

    Raises
    ------
    ValueError, TypeError
        If an option is invalid.
    """

    mode: str | None = "RGB"
    resize: int | Size | None = None
    crop: str | None = None
    crop_size: int | Size | None = None
    resample: str = "bilinear"
    draft: bool = True
    transform: Callable[[Any], Any] | None = None
    _keeps_aspect: bool = field(default=False, init=False, repr=False)
    _crop_size: Size | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        _check_choice("mode", self.mode, IMAGE_MODES)
        _check_choice("crop", self.crop, CROPS)
        _check_choice("resample", self.resample, FILTERS)
        if not isinstance(self.draft, bool):
            raise TypeError(f"draft={self.draft!r}: expected True or False")
        if self.transform is not None and not callable(self.transform):
            raise TypeError(f"transform={self.transform!r}: expected a function, or None")
        object.__setattr__(self, "resize", _check_size("resize", self.resize))
        crop_size = _check_size("crop_size", self.crop_size)
        if crop_size is None and self.crop is not None:
            crop_size = self.resize
            if crop_size is None:
                raise ValueError(f"crop={self.crop!r}: give crop_size=, or resize=")
        if isinstance(crop_size, int):
            crop_size = (crop_size, crop_size)
        keeps_aspect = (
            self.crop_size is None and isinstance(self.resize, tuple) and self.crop is not None
        )
        if crop_size is not None and self.crop is None:
            object.__setattr__(self, "crop", "center")
        object.__setattr__(self, "_keeps_aspect", keeps_aspect)
        object.__setattr__(self, "_crop_size", crop_size)

    @property
    def fixed_size(self) -> Size | None:
        """Height and width of every result before `transform`; None if they depend on the image."""
        if self._crop_size is not None:
            return self._crop_size
        return self.resize if isinstance(self.resize, tuple) else None

    def geometry(self, height: int, width: int, fractions: tuple[float, float]) -> Geometry:
        """Return the resize and the crop of an image.

        Parameters
        ----------
        height, width : int
            The size of the stored image.
        fractions : tuple of float
            The place of a random crop along each axis, vertical first: a fraction in [0, 1) of the
            possible places.

        Raises
        ------
        ValueError
            If the resized image is smaller than the crop.
        """
        size = self._size_after_resize(height, width)
        if self._crop_size is None:
            return Geometry(size, 0, 0, *size)
        crop_height, crop_width = self._crop_size
        spare_height, spare_width = size[0] - crop_height, size[1] - crop_width
        if min(spare_height, spare_width) < 0:
            when = "" if size == (height, width) else " after resize"
            raise ValueError(
                f"the image has height {size[0]} and width {size[1]}{when}, less than the crop "
                f"of {crop_height} and {crop_width}: give resize=, or a smaller crop_size="
            )
        if self.crop == "random":
            top, left = (
                int(fractions[0] * (spare_height + 1)),
                int(fractions[1] * (spare_width + 1)),
            )
        else:
            top, left = round(spare_height / 2), round(spare_width / 2)
        return Geometry(size, top, left, crop_height, crop_width)

    def _size_after_resize(self, height: int, width: int) -> Size:
        if self.resize is None:
            return height, width
        if isinstance(self.resize, int):
            # As torchvision's Resize: the longer side is rounded down.
            if height <= width:
                return self.resize, max(1, int(self.resize * width / height))
            return max(1, int(self.resize * height / width)), self.resize
        if not self._keeps_aspect:
            return self.resize
        scale = max(self.resize[0] / height, self.resize[1] / width)
        rounded = round(height * scale), round(width * scale)
        return max(self.resize[0], rounded[0]), max(self.resize[1], rounded[1])


_NAMES = tuple(option.name for option in fields(ImageOptions) if option.init)


def _check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if not isinstance(value, str | None) or value not in choices:
        expected = ", ".join(map(repr, choices))
        raise ValueError(f"{name}={short_repr(value)}: expected one of {expected}")


def _check_size(name: str, value: Any) -> int | Size | None:
    """Return a length, or height and width, as Python integers."""
    if value is None:
        return None
    if isinstance(value, list | tuple | np.ndarray):
        if len(value) != 2:
            raise ValueError(f"{name}={short_repr(value)}: expected height and width")
        return integer(f"the height of {name}", value[0], 1), integer(
            f"the width of {name}", value[1], 1
        )
    return integer(name, value, 1)


def image_options(options: Any, where: str) -> ImageOptions:
    """Return checked options; `where` names them in errors.

    Parameters
    ----------
    options : ImageOptions, mapping or bool
        The options by name; True for the defaults.
    where : str
        The text before the options in an error.

    Raises
    ------
    ValueError, TypeError
        If an option does not exist, or is invalid.
    """
    if options is True:
        return ImageOptions()
    if isinstance(options, ImageOptions):
        return options
    if not isinstance(options, Mapping):
        raise TypeError(
            f"{where} is {short_repr(options)}: expected True, or options such as {{'resize': 224}}"
        )
    for name in options:
        if name not in _NAMES:
            raise ValueError(
                f"{where} has the unknown option {short_repr(name)}: expected {', '.join(_NAMES)}"
            )
    return ImageOptions(**options)


def options_by_column(decode: Any, columns: Sequence[Field]) -> dict[str, ImageOptions]:
    """Return the options of each column that a read decodes.

    Parameters
    ----------
    decode : bool, str, sequence of str or mapping
        True for all columns of images, names of columns, or options by name.
    columns : sequence of Field
        The columns of the read.

    Raises
    ------
    ColumnError
        If a name in `decode` is not a column.
    ValueError
        If `decode` is True and no column stores images, or if an option is invalid.
    TypeError
        If a named column does not store images or bytes, or if an option has a wrong type.
    """
    if decode is False or decode is None:
        return {}
    by_name = {f.name: f for f in columns}
    if decode is True:
        decode = [name for name, f in by_name.items() if f.encoding.kind == "image"]
        if not decode:
            kinds = ", ".join(f"{name!r} ({f.encoding.name})" for name, f in by_name.items())
            raise ValueError(
                f"decode=True: no column is stored as jpeg, png or pil; there are {kinds}; name a "
                "column of bytes that are images, as in decode=['image']"
            )
    if isinstance(decode, str):
        decode = [decode]
    if isinstance(decode, Sequence):
        decode = dict.fromkeys(decode, True)
    if not isinstance(decode, Mapping):
        raise TypeError(
            f"decode={short_repr(decode)}: expected True, names of columns, or options by name, as "
            "in decode={'image': {'resize': 224}}"
        )
    column_options = {}
    for name, options in decode.items():
        if name not in by_name:
            raise ColumnError(name, by_name)
        require_images(by_name[name])
        if options is not False and options is not None:
            column_options[name] = image_options(options, f"decode[{name!r}]")
    return column_options


def require_images(column: Field) -> None:
    """Raise TypeError unless a column stores images, or bytes that may be images."""
    encoding = column.encoding
    if encoding.kind not in ("image", "bytes") or column.computation is not None:
        raise TypeError(
            f"column {column.name!r} is stored as {encoding.name!r}: images of jpeg, png, pil and "
            "bytes columns are decoded"
        )

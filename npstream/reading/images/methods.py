"""Provide the method of `npstream.Column` that decodes images.

Tested in tests/reading/images/test_columns.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from npstream._core.arguments import integer
from npstream.errors import short_traceback

if TYPE_CHECKING:
    from npstream.indexing.selection import Selection
    from npstream.reading.plan import Plan
    from npstream.reading.source import Source


class ImageMethods:
    """Methods of `npstream.Column`."""

    __slots__ = ()

    if TYPE_CHECKING:
        _plan: Plan
        _selection: Selection
        _source: Source

    def decode(
        self,
        *,
        mode: str | None = "RGB",
        resize: int | tuple[int, int] | None = None,
        crop: str | None = None,
        crop_size: int | tuple[int, int] | None = None,
        resample: str = "bilinear",
        draft: bool = True,
        transform: Callable[[Any], Any] | None = None,
        seed: int = 0,
    ) -> Any:
        """Read the images of this column, and decode them in threads, one for each processor.

        Parameters
        ----------
        mode : {"RGB", "L", "RGBA", None}, default: "RGB"
            The mode to which images are converted, as by Pillow. 16-bit gray keeps the high byte.
            None keeps each image as it is stored; palettes then give indices.
        resize : int or (int, int), optional
            The new length of the shorter side, or height and width.
        crop : {"center", "random"}, optional
            Where to cut out a part of `crop_size`. The default is "center" if `crop_size` is given;
            otherwise there is no crop. A random place depends only on `seed` and on the
            position of the image in this column. With `npstream.Dataset.iter`, it depends only on
            the seed, the epoch and the position in the epoch.
        crop_size : int or (int, int), optional
            The side of a square, or height and width. The default is the value of `resize`. If that
            is a height and a width, the image keeps its aspect ratio: it is resized to the smallest
            size that contains the crop.
        resample : str, default: "bilinear"
            Pillow's filter for `resize`: "nearest", "box", "bilinear", "hamming", "bicubic" or
            "lanczos".
        draft : bool, default: True
            Whether JPEG files are decoded at 1/2, 1/4 or 1/8 of their size, as long as that is at
            least twice the size after `resize`. This is faster, and changes pixels slightly. With
            ``resample="nearest"``, files are always decoded at their full size.
        transform : callable, optional
            Takes the array of each image, and returns another array. It runs in the threads.
        seed : int, default: 0
            Seed of random crops.

        Returns
        -------
        ndarray or list of ndarray
            An array with the axes of the view, then height, width and channels. Its dtype is uint8
            unless `mode` or `transform` gives another. If images differ in shape, a list with one
            array for each image.

        Raises
        ------
        TypeError
            If the column stores no images and no bytes.
        ValueError
            If an option is invalid, an image is damaged, or an image is smaller than the crop.
        MissingDependencyError
            If Pillow is not installed.

        Examples
        --------
        >>> from PIL import Image
        >>> images = [Image.new("RGB", (8, 6), color) for color in ("red", "green", "blue")]
        >>> _ = npstream.write("colors", ({"image": image} for image in images))
        >>> ds = npstream.open("colors")
        >>> ds["image"].decode().shape
        (3, 6, 8, 3)
        >>> ds["image"].decode(resize=4, crop="center").shape
        (3, 4, 4, 3)
        """
        from npstream.reading.images.columns import decode_column
        from npstream.reading.images.options import ImageOptions

        with short_traceback:
            options = ImageOptions(
                mode=mode, resize=resize, crop=crop, crop_size=crop_size, resample=resample,
                draft=draft, transform=transform,
            )  # fmt: skip
            seed = integer("seed", seed)
            return decode_column(self._source, self._plan, self._selection, options, seed)

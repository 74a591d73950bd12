"""Provide `resize_pixels`, which gives the pixels of Pillow's bilinear resize in less time.

Pillow first copies the pixels to memory of its own, and copies the result out of it. The kernel
here reads the pixels of the decoder, and writes to the array of the batch. It does the arithmetic
of Pillow's Resample.c: weights have 22 fractional bits, and rows are resized first, to bytes.

Versions of Pillow resize some images in the other order, which gives other pixels. So the kernel
resizes only images of a geometry for which it gave the pixels of Pillow in a trial.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from npstream._core.jit import kernel, u64
from npstream._core.typing import AnyArray, Int64
from npstream.formats.encodings import images

__all__ = ["Box", "resize_pixels", "use_kernel"]

Box = tuple[float, float, float, float]
"""The part of an image that is resized: left, top, right and bottom, in pixels."""

_MAX_TAPS = 64
"""Maximum number of pixels in a weighted sum, which bounds the memory of weights.

Sums of more than 16,000 pixels could exceed 255 by rounding.
"""

_MIN_PIXELS = 1024
"""Minimum number of pixels of the result. With fewer, a trial could succeed by chance."""

_MAX_PIXELS = 1 << 24
"""Maximum number of pixels of the image, which bounds the memory of a trial."""

_MAX_IMAGES_IN_PILLOW = 2048
"""After this number of images, the kernel is worth its compilation."""

_MAX_TRIALS = 1024
"""Maximum number of geometries that are kept together with the result of their trial."""

_LANES = 16
"""Number of rows that `resize_rows_in_vectors` resizes at once."""

_VECTOR_TAPS = 4
"""Number of pixels in the sums of `resize_rows_in_vectors`: enough down to half of the width."""

_MAX_WEIGHTS = 64
"""Maximum number of axes whose weights are kept."""

_images_in_pillow = 0
"""The number of images for which `use_kernel` returned False while the kernel was not loaded."""

_is_ready = False
"""Whether the kernel is loaded, or is worth its compilation."""

_trials: dict[tuple[int | float, ...], bool | None] = {}
"""Geometry -> the result of its trial; None after the first image."""


def use_kernel(in_size: tuple[int, int], box: Box, out_size: tuple[int, int]) -> bool:
    """Return True if the kernel should resize the next image, and False if Pillow should.

    Parameters
    ----------
    in_size : tuple of int
        Height and width of the image.
    box : tuple of float
        The part to resize.
    out_size : tuple of int
        Height and width of the result.
    """
    global _images_in_pillow, _is_ready
    scales = (box[2] - box[0]) / out_size[1], (box[3] - box[1]) / out_size[0]
    if 2 * max(scales) > _MAX_TAPS or math.prod(in_size) > _MAX_PIXELS:
        return False
    if math.prod(out_size) < _MIN_PIXELS:
        return False
    # Threads may count an image or a trial twice or not at all, which does not matter.
    if not _is_ready:
        _images_in_pillow += 1
        is_loaded = all(function.is_loaded for function in _KERNELS)
        _is_ready = is_loaded or _images_in_pillow > _MAX_IMAGES_IN_PILLOW
        if not _is_ready:
            return False
    geometry = (*in_size, *box, *out_size)
    result = _trials.get(geometry)
    if result is None:
        # A trial takes longer than a resize, so images of many sizes should not cause trials.
        is_first = geometry not in _trials
        result = None if is_first else _has_pixels_of_pillow(in_size, box, out_size)
        if len(_trials) >= _MAX_TRIALS:
            _trials.clear()
        _trials[geometry] = result
    return bool(result)


def _has_pixels_of_pillow(in_size: tuple[int, int], box: Box, out_size: tuple[int, int]) -> bool:
    """Resize noise with the kernel and with Pillow; return True if the pixels are equal."""
    pillow = images.import_pillow()
    pixels = np.random.default_rng(0).integers(0, 256, (*in_size, 4), np.uint8)
    ours = np.empty((*out_size, 3), np.uint8)
    resize_pixels(pixels, box, ours)
    image = pillow.fromarray(np.ascontiguousarray(pixels[..., :3]))
    theirs = image.resize(out_size[::-1], pillow.Resampling.BILINEAR, box=box)
    return np.array_equal(ours, np.asarray(theirs))


def resize_pixels(pixels: AnyArray, box: Box, out: AnyArray) -> None:
    """Resize a part of an image, with the filter "bilinear".

    Parameters
    ----------
    pixels : ndarray of uint8, shape (height, width, 4)
        The image. The fourth channel is ignored.
    box : tuple of float
        The part to resize.
    out : ndarray of uint8, shape (height, width, 3)
        Receives the result. It is contiguous.
    """
    height, width, _ = out.shape
    words = pixels.view(np.int32)[..., 0]
    columns, column_weights = _weights(words.shape[1], box[0], box[2], width, _VECTOR_TAPS)
    rows, row_weights = _weights(words.shape[0], box[1], box[3], height, 1)
    first_row = int(rows[0])
    needed = words[first_row : int(rows[-1]) + row_weights.shape[1]]
    narrow = np.empty((len(needed), 3 * width), np.uint8)
    if column_weights.shape[1] == _VECTOR_TAPS:
        lanes = np.empty((max(words.shape[1], _VECTOR_TAPS), _LANES), np.int32)
        results = np.empty((width, _LANES), np.int32)
        resize_rows_in_vectors(needed, columns, column_weights, lanes, results, narrow)
    else:
        resize_rows(needed, columns, column_weights, narrow)
    sums = np.empty(3 * width, np.int32)
    resize_columns(narrow, rows - first_row, row_weights, sums, out.reshape(height, 3 * width))


@functools.lru_cache(maxsize=_MAX_WEIGHTS)
def _weights(
    in_size: int, begin: float, end: float, out_size: int, min_taps: int
) -> tuple[Int64, AnyArray]:
    """Return the first pixel and the weights of the sum for each pixel of the result.

    Each sum has at least `min_taps` weights. The caller must not change the arrays.
    """
    # Pillow computes the size of the box in 32 bits.
    first, last = np.float32(begin), np.float32(end)
    scale = float(last - first) / out_size
    taps = max(min(math.ceil(2 * max(scale, 1.0)), in_size), min_taps)
    firsts = np.empty(out_size, np.int64)
    weights = np.empty((out_size, taps), np.int32)
    fill_weights(in_size, float(first), scale, firsts, weights)
    return firsts, weights


@kernel
def fill_weights(
    in_size: int, begin: float, scale: float, firsts: Int64, weights: AnyArray
) -> None:
    """Compute the weights of one axis, as Pillow's `precompute_coeffs` does.

    Each sum has the same number of pixels, so some weights are 0.
    """
    support = max(scale, 1.0)
    inverse = 1.0 / support
    taps = weights.shape[1]
    for k in range(firsts.size):
        center = begin + (k + 0.5) * scale
        first = max(int(center - support + 0.5), 0)
        stop = min(int(center + support + 0.5), in_size)
        total = 0.0
        for position in range(first, stop):
            total += max(1.0 - abs((position - center + 0.5) * inverse), 0.0)
        firsts[k] = max(min(first, in_size - taps), 0)
        for tap in range(taps):
            position = firsts[k] + tap
            weight = 0.0
            if first <= position < stop:
                weight = max(1.0 - abs((position - center + 0.5) * inverse), 0.0)
            weights[k, tap] = int(0.5 + weight / total * 4194304.0)  # 22 fractional bits


@kernel
def resize_rows_in_vectors(
    pixels: AnyArray,
    columns: Int64,
    weights: AnyArray,
    lanes: AnyArray,
    results: AnyArray,
    narrow: AnyArray,
) -> None:
    """Resize rows as `resize_rows` does, in half of its time, for sums of `_VECTOR_TAPS` pixels.

    `lanes` has a column for each of `_LANES` rows. So the loop over rows uses vector instructions.
    """
    for begin in range(0, pixels.shape[0], _LANES):
        count = min(_LANES, pixels.shape[0] - begin)
        for lane in range(count):
            for x in range(pixels.shape[1]):
                lanes[x, lane] = pixels[begin + lane, x]
        for x in range(columns.size):
            first = columns[x]
            w0, w1, w2, w3 = weights[x, 0], weights[x, 1], weights[x, 2], weights[x, 3]
            row0, row1, row2, row3 = (
                lanes[first],
                lanes[first + 1],
                lanes[first + 2],
                lanes[first + 3],
            )
            result = results[x]
            for lane in range(_LANES):
                p0, p1, p2, p3 = row0[lane], row1[lane], row2[lane], row3[lane]
                red = (p0 & 255) * w0 + (p1 & 255) * w1 + (p2 & 255) * w2 + (p3 & 255) * w3
                p0, p1, p2, p3 = p0 >> 8, p1 >> 8, p2 >> 8, p3 >> 8
                green = (p0 & 255) * w0 + (p1 & 255) * w1 + (p2 & 255) * w2 + (p3 & 255) * w3
                p0, p1, p2, p3 = p0 >> 8, p1 >> 8, p2 >> 8, p3 >> 8
                blue = (p0 & 255) * w0 + (p1 & 255) * w1 + (p2 & 255) * w2 + (p3 & 255) * w3
                half = 1 << 21
                red, green, blue = red + half >> 22, green + half >> 22, blue + half >> 22
                result[lane] = red | green << 8 | blue << 16
        for lane in range(count):
            for x in range(columns.size):
                word = results[x, lane]
                narrow[begin + lane, 3 * x] = word & 255
                narrow[begin + lane, 3 * x + 1] = word >> 8 & 255
                narrow[begin + lane, 3 * x + 2] = word >> 16 & 255


@kernel
def resize_rows(pixels: AnyArray, columns: Int64, weights: AnyArray, narrow: AnyArray) -> None:
    """Resize the rows of `pixels`, words of 32 bits, to `narrow`, bytes."""
    byte, red_and_blue, channels = u64(255), u64(0xFF00FF), u64(3)
    half, halves, one, two = u64(1 << 21), u64(1 << 53 | 1 << 21), u64(1), u64(2)
    for y in range(u64(pixels.shape[0])):
        target = u64(0)
        for x in range(u64(columns.size)):
            # The low half of `outer` has the sum of red, and its high half that of blue.
            outer, green = halves, half
            first = u64(columns[x])
            for tap in range(u64(weights.shape[1])):
                pixel, weight = u64(pixels[y, first + tap]), u64(weights[x, tap])
                pair = pixel & red_and_blue
                outer += ((pair | pair << u64(16)) & u64(0xFF000000FF)) * weight
                green += (pixel >> u64(8) & byte) * weight
            narrow[y, target] = outer >> u64(22) & byte
            narrow[y, target + one] = green >> u64(22) & byte
            narrow[y, target + two] = outer >> u64(54) & byte
            target += channels


@kernel
def resize_columns(
    narrow: AnyArray, rows: Int64, weights: AnyArray, sums: AnyArray, out: AnyArray
) -> None:
    """Resize the columns of `narrow` to `out`, both bytes."""
    for y in range(rows.size):
        for k in range(sums.size):
            sums[k] = 1 << 21
        for tap in range(weights.shape[1]):
            weight = weights[y, tap]
            row = narrow[rows[y] + tap]
            for k in range(sums.size):
                sums[k] += row[k] * weight
        for k in range(sums.size):
            out[y, k] = sums[k] >> 22


_KERNELS = (fill_weights, resize_rows_in_vectors, resize_rows, resize_columns)

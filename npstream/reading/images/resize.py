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

from npstream._core.jit import copy_u32, kernel, u32, u64
from npstream._core.memory import writable_address
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

_MIN_TAPS = 4
"""Minimum number of pixels in a weighted sum: enough for images of at least half of the size."""

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
    columns, column_weights = _weights(pixels.shape[1], box[0], box[2], width)
    rows, row_weights = _weights(pixels.shape[0], box[1], box[3], height)
    first_row, end_row = int(rows[0]), int(rows[-1]) + row_weights.shape[1]
    needed = pixels[first_row:end_row].view(np.uint32)[..., 0]
    # `write_rows` stores a byte more than the last row.
    memory = np.empty((end_row - first_row) * 3 * width + 1, np.uint8)
    narrow = memory[:-1].reshape(end_row - first_row, 3 * width)
    if column_weights.shape[1] == _MIN_TAPS:
        pairs = np.empty((max(needed.shape[1], _MIN_TAPS), _LANES // 2), np.uint64)
        lanes, results = pairs.view(np.uint32), np.empty((width, _LANES), np.uint32)
        resize_rows_in_vectors(
            needed, columns, column_weights, pairs, lanes, results, writable_address(results),
            writable_address(narrow),
        )  # fmt: skip
    else:
        resize_rows(needed, columns, column_weights, narrow)
    sums = np.empty(3 * width, np.uint32)
    resize_columns(narrow, rows - first_row, row_weights, sums, out.reshape(height, 3 * width))


@functools.lru_cache(maxsize=_MAX_WEIGHTS)
def _weights(in_size: int, begin: float, end: float, out_size: int) -> tuple[Int64, AnyArray]:
    """Return the first pixel and the weights of the sum for each pixel of the result.

    Each sum has at least `_MIN_TAPS` weights, also if there are fewer pixels; then the others are
    0. The caller must not change the arrays.
    """
    # Pillow computes the size of the box in 32 bits.
    first, last = np.float32(begin), np.float32(end)
    scale = float(last - first) / out_size
    taps = max(min(math.ceil(2 * max(scale, 1.0)), in_size), _MIN_TAPS)
    firsts = np.empty(out_size, np.int64)
    weights = np.empty((out_size, taps), np.uint32)
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
    pairs: AnyArray,
    lanes: AnyArray,
    results: AnyArray,
    results_address: int,
    narrow_address: int,
) -> None:
    """Resize rows as `resize_rows` does, in a third of its time, for sums of `_MIN_TAPS` pixels.

    `lanes` has a column for each of `_LANES` rows. So the loop over rows uses vector instructions.
    `pairs` is the same memory, with a column for each two rows.
    """
    for begin in range(0, pixels.shape[0], _LANES):
        transpose_rows(pixels, begin, pairs)
        for x in range(u64(columns.size)):
            first = u64(columns[x])
            resize_lanes(
                lanes[first], lanes[first + u64(1)], lanes[first + u64(2)], lanes[first + u64(3)],
                weights[x], results[x],
            )  # fmt: skip
        write_rows(
            results_address,
            min(_LANES, pixels.shape[0] - begin),
            columns.size,
            narrow_address + begin * 3 * columns.size,
        )


@kernel
def transpose_rows(pixels: AnyArray, begin: int, pairs: AnyArray) -> None:
    """Copy `_LANES` rows to columns, two rows at once. The last row replaces missing ones."""
    last = pixels.shape[0] - 1
    for pair in range(_LANES // 2):
        upper = pixels[min(begin + 2 * pair, last)]
        lower = pixels[min(begin + 2 * pair + 1, last)]
        for x in range(u64(upper.size)):
            pairs[x, pair] = u64(upper[x]) | u64(lower[x]) << u64(32)


@kernel
def resize_lanes(
    row0: AnyArray,
    row1: AnyArray,
    row2: AnyArray,
    row3: AnyArray,
    weights: AnyArray,
    result: AnyArray,
) -> None:
    """Compute one pixel of `_LANES` rows, as words of three bytes.

    Numba computes in 64 bits. `u32` lets the compiler use 32 bits, and twice as many in a vector.
    """
    byte, half = u32(255), u32(1 << 21)
    w0, w1, w2, w3 = weights[0], weights[1], weights[2], weights[3]
    for lane in range(u64(_LANES)):
        p0, p1, p2, p3 = row0[lane], row1[lane], row2[lane], row3[lane]
        red = (p0 & byte) * w0 + (p1 & byte) * w1 + (p2 & byte) * w2 + (p3 & byte) * w3
        p0, p1, p2, p3 = u32(p0 >> 8), u32(p1 >> 8), u32(p2 >> 8), u32(p3 >> 8)
        green = (p0 & byte) * w0 + (p1 & byte) * w1 + (p2 & byte) * w2 + (p3 & byte) * w3
        p0, p1, p2, p3 = u32(p0 >> 8), u32(p1 >> 8), u32(p2 >> 8), u32(p3 >> 8)
        blue = (p0 & byte) * w0 + (p1 & byte) * w1 + (p2 & byte) * w2 + (p3 & byte) * w3
        red, green, blue = u32(red + half), u32(green + half), u32(blue + half)
        result[lane] = red >> 22 | green >> 22 << 8 | blue >> 22 << 16


@kernel
def write_rows(source: int, rows: int, width: int, target: int) -> None:
    """Copy columns of words, `_LANES` wide, to rows of three bytes a word.

    Each copy writes a byte too many, which the next one replaces.
    """
    for row in range(rows):
        for x in range(width):
            copy_u32(target + 3 * (row * width + x), source + 4 * (x * _LANES + row))


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
    """Resize the columns of `narrow` to `out`, both bytes. There are at least `_MIN_TAPS` taps."""
    for y in range(rows.size):
        first = rows[y]
        w0, w1, w2, w3 = weights[y, 0], weights[y, 1], weights[y, 2], weights[y, 3]
        row0, row1, row2, row3 = (
            narrow[first],
            narrow[first + 1],
            narrow[first + 2],
            narrow[first + 3],
        )
        for k in range(sums.size):
            sums[k] = row0[k] * w0 + row1[k] * w1 + row2[k] * w2 + row3[k] * w3 + (1 << 21)
        for tap in range(_MIN_TAPS, weights.shape[1]):
            weight, row = weights[y, tap], narrow[first + tap]
            for k in range(sums.size):
                sums[k] += row[k] * weight
        for k in range(sums.size):
            out[y, k] = sums[k] >> 22


_KERNELS = (fill_weights, resize_rows_in_vectors, resize_rows, resize_columns)

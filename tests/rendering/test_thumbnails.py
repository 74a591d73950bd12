"""Thumbnails: their size on the page, and which arrays are shown as images."""

from __future__ import annotations

import io

import numpy as np
import pytest

from npstream.rendering.thumbnails import PIXEL_RATIO, is_image_array, thumbnail


@pytest.mark.parametrize(
    ("size", "shown"),
    [((500, 250), (96, 48)), ((250, 500), (48, 96)), ((60, 50), (60, 50)), ((10, 20), (40, 80))],
)
def test_thumbnails_fit_their_box(size, shown):
    pillow = pytest.importorskip("PIL.Image")
    small = thumbnail(pillow.new("RGB", size), 96)
    assert (small.width, small.height) == shown
    assert small.size == size
    assert small.is_enlarged == (max(size) <= 96 // 2)
    assert max(small.open().size) <= 96 * PIXEL_RATIO


def test_transparency_is_kept():
    pillow = pytest.importorskip("PIL.Image")
    small = thumbnail(pillow.new("RGBA", (200, 200), (1, 2, 3, 0)), 96)
    assert small.open().getpixel((0, 0))[3] == 0


def test_the_image_is_not_changed():
    pillow = pytest.importorskip("PIL.Image")
    image = pillow.new("RGB", (500, 500))
    thumbnail(image, 96)
    assert image.size == (500, 500)


def test_an_opened_jpeg_file_is_not_changed():
    pillow = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    pillow.new("RGB", (500, 500)).save(file, "JPEG")
    image = pillow.open(file)  # not decoded yet, so its resolution could still be reduced
    thumbnail(image, 48)
    assert image.size == (500, 500)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((28, 28), True), ((8, 8, 3), True), ((3, 8, 8), True), ((8, 8, 2), False), ((7, 8), False),
        ((28, 28, 28), False), ((28,), False), ((0, 0), False), ((100_000, 100_000), False),
    ],
)  # fmt: skip
def test_shapes_of_images(shape, expected):
    assert is_image_array(np.dtype(np.uint8), shape) is expected
    assert not is_image_array(np.dtype(np.int16), shape)

"""Image grids: `Column.show` reads the first images, and shows errors in place of damaged ones."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

import npstream
from tests.rendering.test_cells import image_bytes
from tests.rendering.test_html import check_page

pillow = pytest.importorskip("PIL.Image")

PIXELS = np.random.default_rng(0).integers(0, 255, (100, 40, 30, 3)).astype(np.uint8)


@pytest.fixture
def images(tmp_path):
    encoded = [image_bytes("PNG", pixels) for pixels in PIXELS[:5]]
    encoded[3] = b"damaged"
    columns = {
        "png": [pillow.open(io.BytesIO(image_bytes("PNG", pixels))) for pixels in PIXELS[:5]],
        "bytes": encoded,
        "pixels": PIXELS[:5],
        "text": ["a"] * 5,
    }
    npstream.write(tmp_path / "images", columns)
    return npstream.open(tmp_path / "images")


@pytest.mark.parametrize("name", ["png", "bytes", "pixels"])
def test_a_grid_has_the_images_of_the_view(images, name):
    grid = images[name][[4, 0, 1]].show(size=80, columns=2)
    page = check_page(grid._repr_html_())
    assert page.tags.count("img") == len(grid) == 3
    assert page.text == f"3 images of {name!r}012"
    with pillow.open(io.BytesIO(grid._repr_png_())) as image:
        # A tile is 86 pixels wide: 80 and a gap of 6. It is 100 high, with a label of 14.
        assert image.size == grid.to_pil().size == (2 * 86, 2 * 100)


def test_the_first_images_are_read(tmp_path):
    npstream.write(tmp_path, {"x": PIXELS})
    column = npstream.open(tmp_path)["x"]
    assert len(column.show()) == 64
    assert repr(column.show(3)).startswith("<ImageGrid: 3 images of 'x', which has 100; ")
    assert len(column[:0].show()) == 0
    # The label of an image is its two indices. The text of the page ends with the four labels.
    assert check_page(column[[[0, 1], [2, 3]]].show()._repr_html_()).text.endswith(
        "0, 00, 11, 01, 1"
    )


def test_a_damaged_image_shows_its_error(images):
    page = check_page(images["bytes"].show()._repr_html_())
    assert page.tags.count("img") == 4
    assert "UnidentifiedImageError" in page.text
    assert images["bytes"].show()._repr_png_().startswith(b"\x89PNG")


def test_pixels_of_the_grid_are_those_of_the_images(images):
    grid = images["pixels"][1:2].show(size=96)
    # The image is enlarged by a factor of 2, at the bottom center of a tile of 96 pixels.
    shown = np.asarray(grid.to_pil())[96 - 80 : 96, 18 : 18 + 60]
    assert np.array_equal(shown[::2, ::2], PIXELS[1])


def test_a_grid_is_saved_as_an_image_or_a_page(images, tmp_path):
    grid = images["png"].show()
    grid.save(tmp_path / "grid.png")
    with pillow.open(tmp_path / "grid.png") as image:
        assert image.size == grid.to_pil().size
    grid.save(tmp_path / "grid.html")
    assert (tmp_path / "grid.html").read_text(encoding="utf-8").count("<img") == 5
    with pytest.raises(ValueError, match="unknown file extension"):
        grid.save(tmp_path / "grid.nothing")


def test_columns_without_images_and_max_images_of_zero_are_refused(images):
    with pytest.raises(TypeError, match="column 'text' holds str values, not images"):
        images["text"].show()
    with pytest.raises(ValueError, match="max_images=0"):
        images["png"].show(0)


def test_errors_of_a_read_are_raised_if_nothing_can_be_shown(images):
    images.close()
    with pytest.raises(ValueError, match="the dataset is closed"):
        images["bytes"].show()


def test_without_pillow_the_error_names_the_package(images, monkeypatch):
    column = images["pixels"]
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(npstream.errors.MissingDependencyError, match=r"npstream\[images\]"):
        column.show()

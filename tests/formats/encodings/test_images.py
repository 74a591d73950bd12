"""Images survive their encodings, and files are stored as they are."""

from __future__ import annotations

import sys

import pytest
from encoded import picture
from PIL import Image

from npstream.errors import MissingDependencyError
from npstream.formats.encodings.encodings import (
    parse,
)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F"])
@pytest.mark.parametrize("size", [(9, 2), (1, 1), (0, 3)])
def test_pixels_survive(mode, size):
    encoding = parse("pil")
    image = picture(mode, size)
    decoded = encoding.decode(encoding.encode(image))
    assert (decoded.mode, decoded.size) == (mode, size)
    assert decoded.tobytes() == image.tobytes()


@pytest.mark.parametrize("name", ["pil", "list[pil]"])
def test_a_palette_is_not_lost(name):
    image = picture().quantize(4)
    with pytest.raises(ValueError, match=r"indices into a palette.*convert.*or choose 'png'"):
        parse(name).encode([image] if "list" in name else image)
    kept = parse("png").decode(parse("png").encode(image))
    assert kept.convert("RGB").tobytes() == image.convert("RGB").tobytes()


@pytest.fixture
def jpeg(tmp_path):
    path = tmp_path / "picture.jpg"
    picture(size=(40, 30)).save(path, quality=50)
    return path


def opened(path):
    with Image.open(path) as image:
        image.load()
    return image


def test_a_jpeg_file_is_stored_verbatim(jpeg):
    assert parse("jpeg").encode(opened(jpeg)) == jpeg.read_bytes()
    with Image.open(jpeg) as unread:
        assert parse("jpeg").encode(unread) == jpeg.read_bytes()


def test_what_is_no_longer_the_file_is_encoded(jpeg):
    """The original stores the file all the same: another picture than the one it was given."""
    smaller, painted, homeless = (opened(jpeg) for _ in range(3))
    smaller.thumbnail((20, 20))
    painted.paste((255, 0, 0), (0, 0, 40, 30))
    for image in (smaller, painted):
        decoded = parse("jpeg").decode(parse("jpeg").encode(image))
        assert decoded.size == image.size
        assert decoded.resize((1, 1)).getpixel((0, 0)) == pytest.approx(
            image.resize((1, 1)).getpixel((0, 0)), abs=8
        )
    data = jpeg.read_bytes()
    jpeg.unlink()
    again = parse("jpeg").encode(homeless)
    assert again != data
    assert parse("jpeg").decode(again).size == homeless.size


@pytest.mark.parametrize(("name", "mode"), [("jpeg", "RGBA"), ("png", "CMYK")])
def test_modes_that_a_format_cannot_hold(name, mode):
    with pytest.raises(ValueError, match=f"cannot write mode {mode}.*convert"):
        parse(name).encode(picture(mode))


def test_lists_of_images_hold_nothing_else():
    with pytest.raises(TypeError, match="got bytes; jpeg_array takes"):
        parse("list[jpeg]").encode([b"x"])
    with pytest.raises(TypeError, match=r"list\[jpeg\]"):
        parse("jpeg_array").encode([picture()])


def test_without_pillow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    for name in ("pil", "jpeg", "png"):
        with pytest.raises(MissingDependencyError, match=r"npstream\[images\]"):
            parse(name).decode(bytes(12))
        with pytest.raises(MissingDependencyError, match=r"npstream\[images\]"):
            parse(name).encode("x")

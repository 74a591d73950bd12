"""Values as text and as cells of HTML: exact text, images, audio, nested and damaged values."""

from __future__ import annotations

import base64
import datetime
import io
import re
import struct
import sys
import wave
from decimal import Decimal

import numpy as np
import pytest

from npstream.formats.encodings import images
from npstream.rendering import cells
from npstream.rendering.cells import CellRenderer, first_values_text, rows_table, type_text
from npstream.rendering.media import recognize
from npstream.rendering.text import (
    WIDTH,
    Unread,
    plain_text,
    printable_name,
    value_text,
    values_text,
)
from tests.rendering.test_html import ATTACKS, Page, check_page, visible

PIXELS = np.arange(40 * 30 * 3, dtype=np.uint32).reshape(40, 30, 3).astype(np.uint8)


def image_bytes(format: str, pixels: np.ndarray = PIXELS) -> bytes:
    pillow = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    pillow.fromarray(pixels).save(file, format)
    return file.getvalue()


def wav_bytes(frames: int = 100) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(8000)
        writer.writeframes(bytes(2 * frames))
    return file.getvalue()


class Hostile:
    """An object whose methods raise."""

    def __repr__(self) -> str:
        raise RuntimeError("<b>no repr</b>")


VALUE_TEXTS = [
    (np.int64(5), "5"),
    (np.float32(0.1), "0.1"),
    (np.float32(1 / 3), "0.333333"),
    (np.float64(-2e5 / 3), "-66666.7"),
    (np.float64(1e10 / 3), "3333333333.3"),
    (1e-10 / 3, "3.33333e-11"),
    (1e20 / 3, "3.33333e+19"),
    (123456789.0, "123456789.0"),
    (np.float64("nan"), "nan"),
    (float("-inf"), "-inf"),
    ({"x": [0.1 + 0.2]}, "{'x': [0.3]}"),
    (np.bool_(True), "True"),
    (np.datetime64("2024-02-29"), "2024-02-29"),
    (np.array(7, np.uint8), "7"),
    (np.array([1, 20]), "int64 (2,) [1 20]"),
    (np.array(["a"], np.dtypes.StringDType()), "str (1,) ['a']"),
    ("a\n'", '"a\\n\'"'),
    (b"ab", "b'ab'"),
    (bytes(100), "b'\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x0... (100 bytes)"),
    ({"a": [np.int8(1), (2,)]}, "{'a': [1, (2,)]}"),
    (list(range(1000)), "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16..."),
    (Decimal("0.5"), "0.5"),
    (datetime.date(2024, 2, 29), "2024-02-29"),
    (None, "None"),
    (ValueError("a\nb"), "ValueError: a b"),
    (Unread(3 << 30), "<3.0 GiB, not read>"),
]
"""Values, and their texts."""


@pytest.mark.parametrize(
    ("value", "text"),
    VALUE_TEXTS,
    ids=[f"{n}-{type(v).__name__}" for n, (v, _) in enumerate(VALUE_TEXTS)],
)
def test_values_print_as_a_person_writes_them(value, text):
    assert value_text(value) == text


def test_a_repr_that_raises_is_replaced():
    assert value_text(Hostile()) == "<Hostile: its repr raises RuntimeError>"
    assert Page(CellRenderer().cell(Hostile())).text == "<Hostile: its repr raises RuntimeError>"


def test_lists_of_values_fit_their_line():
    assert values_text([np.int64(1)], is_all=True) == "1"
    assert values_text([], is_all=True) == ""
    assert values_text([], is_all=False) == "..."
    assert len(values_text(["x" * 1000] * 3, is_all=False, width=40)) <= 40
    assert first_values_text(["a", "b"], 60) == "'a', 'b'"
    assert first_values_text(7, 60) == "7"


def test_a_large_list_is_not_rendered_whole():
    calls = []

    class Item:
        def __repr__(self):
            calls.append(self)
            return "x"

    assert len(value_text([[Item()] * 10] * 10**6)) <= WIDTH
    assert len(calls) <= WIDTH


def test_names_do_not_control_a_terminal():
    assert printable_name("a\x1b[31m\n") == "a\\x1b[31m\\n"
    assert printable_name("naïve") == "naïve"


@pytest.mark.parametrize(
    ("head", "label"),
    [
        (b"\xff\xd8\xff\xe0", "JPEG image"),
        (b"\x89PNG\r\n\x1a\n", "PNG image"),
        (b"GIF89a", "GIF image"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WebP image"),
        (b"RIFF\0\0\0\0WAVEfmt ", "WAV audio"),
        (b"BM" + bytes(12) + struct.pack("<I", 40), "BMP image"),
        (b"fLaC\0\0\0\x22", "FLAC audio"),
        (b"OggS\0", "OGG audio"),
        (b"ID3\x04\0", "MP3 audio"),
        (b"\xff\xfb\x90\x64", "MP3 audio"),
        (b"\xff\xf3\x84\xc4", "MP3 audio"),
        (b"\0\0\0\x20ftypisom", "MP4 video"),
        (b"\0\0\0\x20ftypavif", "AVIF image"),
        (b"BM is text and no image", None),
        (b"\xff\xff\xff\xff", None),
        (b"\xff\xfb\xf0\x00", None),
        (b"RIFF\0\0\0\0nope", None),
        (b"", None),
        (b"plain text", None),
    ],
)
def test_media_is_recognized_by_its_first_bytes(head, label):
    media = recognize(head)
    assert (None if media is None else media.label) == label


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_image_files_become_thumbnails(format):
    page = check_page(CellRenderer().cell(image_bytes(format)))
    assert page.tags.count("img") == 1
    assert "30 × 40" in page.text  # noqa: RUF001


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1), (3, 28, 28), (28, 28, 4), (28, 28, 3)])
def test_uint8_arrays_of_image_shape_become_thumbnails(shape):
    pillow = pytest.importorskip("PIL.Image")
    pixels = np.arange(np.prod(shape), dtype=np.uint32).reshape(shape).astype(np.uint8)
    page = check_page(CellRenderer().cell(pixels))
    attributes = dict(page.attributes)
    assert (attributes["width"], attributes["height"]) == ("84", "84")  # three times as large
    with pillow.open(io.BytesIO(base64.b64decode(attributes["src"].split(",")[1]))) as image:
        shown = np.asarray(image)
    expected = pixels.transpose(1, 2, 0) if shape[0] == 3 else pixels
    assert np.array_equal(shown, expected.reshape(shown.shape))


@pytest.mark.parametrize(
    "value",
    [np.zeros((2, 3), np.uint8), np.zeros((8, 500), np.uint8), np.zeros((28, 28), np.int8)],
    ids=lambda value: f"{value.dtype}{value.shape}",
)
def test_other_arrays_are_text(value):
    page = check_page(CellRenderer().cell(value))
    assert "img" not in page.tags
    assert f"shape {value.shape}" in page.text


def test_pil_images_and_lists_of_images_become_thumbnails():
    pillow = pytest.importorskip("PIL.Image")
    body = images.encode_pil(pillow.fromarray(PIXELS))
    assert "img" in check_page(CellRenderer().cell(body, "pil")).tags
    assert "img" in check_page(CellRenderer().cell(pillow.fromarray(PIXELS))).tags
    page = check_page(CellRenderer().cell([pillow.fromarray(PIXELS)] * 6))
    assert page.tags.count("img") == cells.MAX_IMAGES
    assert page.text.endswith("6 images")


@pytest.mark.parametrize("mode", ["1", "P", "LA", "I;16", "I", "F", "CMYK", "YCbCr", "HSV"])
def test_images_of_any_mode_become_thumbnails(mode):
    pillow = pytest.importorskip("PIL.Image")
    assert "img" in check_page(CellRenderer().cell(pillow.new(mode, (50, 40)))).tags


def test_a_large_photo_becomes_a_small_thumbnail():
    noise = np.random.default_rng(0).integers(0, 255, (1000, 2000, 3)).astype(np.uint8)
    page = check_page(CellRenderer().cell(image_bytes("JPEG", noise)))
    attributes = dict(page.attributes)
    assert (attributes["width"], attributes["height"]) == ("96", "48")
    assert len(attributes["src"]) < 20_000


@pytest.mark.parametrize("body", [b"\xff\xd8\xff\xe0 damaged", b"<b>not an image</b>"])
def test_damaged_images_show_their_error(body):
    pytest.importorskip("PIL")
    page = check_page(CellRenderer().cell(body, "jpeg"))
    assert "Error: " in page.text
    assert ("class", "npstream-e") in page.attributes


def test_a_truncated_image_shows_its_error():
    body = image_bytes("JPEG", np.tile(PIXELS, (10, 10, 1)))
    assert "OSError: image file is truncated" in check_page(CellRenderer().cell(body[:2000])).text


def test_an_image_with_too_many_pixels_is_not_decoded():
    pillow = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    pillow.new("1", (9000, 9000)).save(file, "PNG")
    assert (
        "9000 x 9000 pixels are too many" in check_page(CellRenderer().cell(file.getvalue())).text
    )


def test_postscript_is_never_opened():
    """Pillow would start Ghostscript to decode it."""
    page = check_page(
        CellRenderer().cell(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9", "jpeg")
    )
    assert "UnidentifiedImageError" in page.text


def test_without_pillow_images_are_described(monkeypatch):
    body = image_bytes("PNG")
    monkeypatch.setitem(sys.modules, "PIL", None)
    page = check_page(CellRenderer().cell(body))
    assert page.text.startswith("PNG, ")
    assert "pip install pillow" in page.text


def test_audio_gets_a_player():
    body = wav_bytes()
    page = check_page(CellRenderer().cell(body))
    assert page.tags == ["audio", "small"]
    uri = dict(page.attributes)["src"]
    assert uri.startswith("data:audio/wav;base64,")
    assert base64.b64decode(uri.split(",")[1]) == body
    assert page.text == "WAV audio, 244 bytes"


def test_large_media_are_not_in_the_page(monkeypatch):
    assert "audio" not in check_page(CellRenderer().cell(wav_bytes(cells.MAX_AUDIO))).tags
    monkeypatch.setattr(cells, "MAX_PAGE", 1000)
    renderer = CellRenderer()
    for _ in range(3):  # an audio file of 244 bytes takes 325 bytes in base64
        assert "audio" in check_page(renderer.cell(wav_bytes())).tags
    assert "audio" not in check_page(renderer.cell(wav_bytes())).tags
    pytest.importorskip("PIL")
    assert check_page(renderer.cell(PIXELS)).tags == ["span"]


def test_long_nested_values_are_collapsed():
    page = check_page(CellRenderer().cell({"a": list(range(200)), "b": {"c": "x" * 60}}))
    assert page.tags.count("details") == 3
    assert "{2 keys}" in page.text
    assert "'a': [200 items]" in page.text
    assert "180 more" in page.text
    assert len(page.text) < 3000
    assert "details" not in check_page(CellRenderer().cell({"a": 1})).tags


def test_deeply_nested_values_end():
    value: list = []
    for _ in range(5000):
        value = [value]
    assert len(check_page(CellRenderer().cell(value)).text) < 3000


def test_long_text_is_truncated():
    page = check_page(CellRenderer().cell("é" * 100_000))
    assert page.text.endswith("… (100,000 characters)")
    assert len(page.text) < 300
    assert plain_text("abc", 3) == "abc"


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_value_becomes_markup(attack):
    body = attack.encode("utf-8", "surrogatepass")
    values = [
        attack, body, {attack: [attack] * 30}, [attack], ValueError(attack), np.array([attack]),
        np.array([attack], object), b"\xff\xd8\xff" + body, b"RIFF0000WAVE" + body, b"ID3" + body,
    ]  # fmt: skip
    html = rows_table(
        attack, {"row": [attack] * len(values)}, {attack: values}, {attack: attack},
        {attack: attack}, attack,
    )  # fmt: skip
    page = check_page(html)
    assert visible(attack) in page.text
    assert page.tags.count("tr") == 1 + len(values)
    assert not re.search(r"\son\w+\s*=", "".join(name for name, _ in page.attributes))


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("ndarray:int8:3", "int8 (3,)"), ("str", "str"), ("ndarray:<b>", "<b> (...)")],
)
def test_types_are_shown_in_terms_of_numpy(encoding, text):
    assert type_text(encoding) == text


def test_numbers_are_aligned_to_the_right():
    html = rows_table("t", {"row": ["0"]}, {"n": [1], "s": ["x"]}, {"n": "int", "s": "str"}, {}, "")
    assert html.count('<td class="npstream-n">') == 1

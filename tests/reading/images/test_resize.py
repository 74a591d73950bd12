"""Tests of the resize kernel, against Pillow."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from npstream.reading.images import decoders, resize
from npstream.reading.images.options import ImageOptions

BILINEAR = Image.Resampling.BILINEAR
SIDES = st.integers(1, 70)


@pytest.fixture(autouse=True)
def reset_trials(monkeypatch):
    """Start without trials, and use the kernel from the second image of a geometry on."""
    monkeypatch.setattr(resize, "_trials", {})
    monkeypatch.setattr(resize, "_images_in_pillow", 0)
    monkeypatch.setattr(resize, "_is_ready", True)


def resize_axes(pixels, box, size):
    """Resize the rows and then the columns with Pillow, which may use another order by itself."""
    image = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
    narrow = image.resize((size[1], image.height), BILINEAR, (box[0], 0, box[2], image.height))
    return np.asarray(narrow.resize(size[::-1], BILINEAR, (0, box[1], size[1], box[3])))


@given(
    in_size=st.tuples(SIDES, SIDES),
    out_size=st.tuples(SIDES, SIDES),
    margins=st.lists(st.floats(0, 0.45), min_size=4, max_size=4),
    is_whole=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=300, deadline=None)
def test_pixels_are_those_of_pillow(in_size, out_size, margins, is_whole, seed):
    height, width = in_size
    pixels = np.random.default_rng(seed).integers(0, 256, (*in_size, 4), np.uint8)
    left, top, right, bottom = [0.0] * 4 if is_whole else margins
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    out = np.empty((*out_size, 3), np.uint8)
    resize.resize_pixels(pixels, box, out)
    np.testing.assert_array_equal(out, resize_axes(pixels, box, out_size))


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("size", [(1000, 3), (3, 1000), (1000, 999)])
def test_the_largest_sums_do_not_overflow(size, value):
    pixels = np.full((*size, 4), value, np.uint8)
    out = np.empty((2, 2, 3), np.uint8)
    resize.resize_pixels(pixels, (0, 0, size[1], size[0]), out)
    assert (out == value).all()


@pytest.mark.parametrize("width", [3, 8])
def test_kernels_in_python_give_the_same_pixels(width, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (19, 13, 4), np.uint8)
    outputs = np.empty((2, 5, width, 3), np.uint8)
    resize.resize_pixels(pixels, (0.5, 1, 12, 19), outputs[0])
    for function in resize._KERNELS:
        monkeypatch.setattr(resize, function.__name__, function.py_func)
    resize._weights.cache_clear()
    resize.resize_pixels(pixels, (0.5, 1, 12, 19), outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[1])


def jpeg(height, width):
    small = np.random.default_rng(height).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def decode(body, options):
    return decoders.decode_image(body, "jpeg", options, (0.3, 0.7), lambda shape, dtype: None)


@pytest.mark.parametrize("size", [(96, 144), (160, 90), (401, 603), (333, 500)])
@pytest.mark.parametrize(
    "options",
    [
        {"resize": (64, 96)},
        {"resize": (40, 200)},
        {"resize": (200, 40)},
        {"resize": 80},
        {"resize": 50, "draft": False},
        {"resize": (60, 60), "crop": "center"},
        {"resize": 72, "crop": "random", "crop_size": 64},
        {"resize": 72, "mode": None},
        {"resize": 72, "mode": "L"},
        {"resize": 72, "resample": "bicubic"},
    ],
    ids=str,
)
def test_each_image_of_a_geometry_has_the_same_pixels(size, options, monkeypatch):
    """The first image is resized by Pillow, and the others by the kernel if its trial succeeds."""
    pytest.importorskip("simplejpeg")
    body, checked = jpeg(*size), ImageOptions(**options)
    calls = []
    original = decoders.resize_pixels
    monkeypatch.setattr(decoders, "resize_pixels", lambda *a: (calls.append(a), original(*a)))
    first, second, third = (decode(body, checked) for _ in range(3))
    np.testing.assert_array_equal(second, first)
    np.testing.assert_array_equal(third, first)
    has_trial = checked.mode in ("RGB", None) and checked.resample == "bilinear"
    results = list(resize._trials.values())
    assert len(results) == has_trial
    assert None not in results  # the trial is over; Pillow may resize in another order
    assert len(calls) == 2 * results.count(True)
    with monkeypatch.context() as patch:
        patch.setattr(decoders, "_simplejpeg", lambda: None)
        np.testing.assert_array_equal(decode(body, checked), first)


def test_the_kernel_is_used_for_a_plain_resize():
    assert not resize.use_kernel((224, 336), (0, 0, 336, 224), (128, 192))
    assert resize.use_kernel((224, 336), (0, 0, 336, 224), (128, 192))


def test_pillow_resizes_if_the_trial_fails(monkeypatch):
    pytest.importorskip("simplejpeg")

    def give_other_pixels(pixels, box, out):
        out[...] = resize_axes(pixels, box, out.shape[:2]) ^ 1

    monkeypatch.setattr(resize, "resize_pixels", give_other_pixels)
    body, options = jpeg(96, 144), ImageOptions(resize=(64, 96))
    decoded = [decode(body, options) for _ in range(3)]
    assert list(resize._trials.values()) == [False]
    expected = Image.open(io.BytesIO(body)).resize((96, 64), BILINEAR)
    for array in decoded:
        np.testing.assert_array_equal(array, np.asarray(expected))


def test_few_images_do_not_compile(monkeypatch):
    monkeypatch.setattr(resize, "_is_ready", False)
    kernels = [type("Kernel", (), {"is_loaded": False})]
    monkeypatch.setattr(resize, "_KERNELS", kernels)
    monkeypatch.setattr(resize, "_MAX_IMAGES_IN_PILLOW", 3)
    monkeypatch.setattr(resize, "_has_pixels_of_pillow", lambda *geometry: True)
    geometry = (60, 60), (0, 0, 60, 60), (50, 50)
    # The fourth image is the first of its geometry after the limit.
    assert [resize.use_kernel(*geometry) for _ in range(6)] == [False] * 4 + [True] * 2


@pytest.mark.parametrize(
    ("in_size", "out_size"),
    [
        ((60, 60), (31, 33)),
        ((30_000, 60), (50, 50)),
        ((60, 60_000), (50, 50)),
        ((5000, 5000), (900, 900)),
    ],
)
def test_unsuitable_sizes_are_left_to_pillow(in_size, out_size):
    for _ in range(3):
        assert not resize.use_kernel(in_size, (0, 0, in_size[1], in_size[0]), out_size)
    assert not resize._trials


def test_trials_of_many_geometries_are_bounded(monkeypatch):
    monkeypatch.setattr(resize, "_MAX_TRIALS", 4)
    for side in range(40, 50):
        resize.use_kernel((60, 60), (0, 0, 60, 60), (side, 50))
        assert len(resize._trials) <= 4

"""Columns of images are decoded to the pixels that Pillow gives."""

from __future__ import annotations

import io
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from started import started_threads

import npstream
from npstream._core.memory import address_of
from npstream.errors import FormatError
from npstream.reading.images import decoders
from npstream.reading.images.options import ImageOptions
from npstream.reading.images.threads import DecodeThreads, ImageStack

DECODERS = ["pillow", "simplejpeg"]


@pytest.fixture(params=DECODERS)
def decoder(request, monkeypatch):
    """Decode JPEG files with each decoder in turn."""
    if request.param == "simplejpeg":
        pytest.importorskip("simplejpeg")
    else:
        monkeypatch.setattr(decoders, "_simplejpeg", lambda: None)
    return request.param


def encode(image, format="JPEG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def picture(height, width, mode="RGB", seed=0):
    """Return an image without fine noise, which JPEG and filters would change much."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(1, height // 8), max(1, width // 8), channels), np.uint8)
    bands = [Image.fromarray(small[..., k]) for k in range(channels)]
    bands = [band.resize((width, height), Image.Resampling.BICUBIC) for band in bands]
    return Image.merge(mode, bands)


def pixels(image):
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def open_image(body):
    return Image.open(io.BytesIO(body))


def write(path, bodies, encoding="jpeg"):
    samples = ({"image": body, "n": k} for k, body in enumerate(bodies))
    npstream.write(path, samples, columns={"image": encoding, "n": "int"})
    return npstream.open(path)


def decode_one(body, encoding="bytes", **options):
    """Decode one image without a dataset."""
    checked = ImageOptions(**options)
    return decoders.decode_image(body, encoding, checked, (0.5, 0.5), lambda shape, dtype: None)


def test_images_of_one_size_are_one_array(tmp_path, decoder):
    bodies = [encode(picture(24, 32, seed=k)) for k in range(7)]
    ds = write(tmp_path / "ds", bodies)
    images = ds["image"].decode()
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, [pixels(open_image(body)) for body in bodies])
    batch = ds.load(decode=True)
    np.testing.assert_array_equal(batch["image"], images)
    assert batch["n"].tolist() == [*range(7)]
    np.testing.assert_array_equal(ds[[5, 0, 5]]["image"].decode(), images[[5, 0, 5]])
    np.testing.assert_array_equal(
        ds[np.array([[1, 2], [3, 4]])]["image"].decode(), images[1:5].reshape(2, 2, 24, 32, 3)
    )


def test_images_of_several_sizes_are_a_list(tmp_path, decoder):
    bodies = [encode(picture(24 + k // 2, 32, seed=k)) for k in range(7)]
    images = write(tmp_path / "ds", bodies)["image"].decode()
    assert isinstance(images, list)
    for image, body in zip(images, bodies, strict=True):
        np.testing.assert_array_equal(image, pixels(open_image(body)))
        assert image.base is None or image.base.nbytes < 2 * image.nbytes  # not the whole stack
    batch = write(tmp_path / "again", bodies).load(decode=["image"])
    assert "list of 7 ndarrays" in repr(batch)


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    mode=st.sampled_from(["L", "RGB", "RGBA", "LA", "1", "P", "CMYK"]),
    target=st.sampled_from(["RGB", "L", "RGBA", None]),
    format=st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"]),
    has_simplejpeg=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_modes_and_formats_give_the_pixels_of_pillow(
    height, width, mode, target, format, has_simplejpeg
):
    base = picture(height, width)
    image = base.quantize(16) if mode == "P" else base.convert("RGBA" if mode == "LA" else mode)
    if mode == "LA":
        image = image.convert("LA")
    try:
        body = encode(image, format)
    except (OSError, ValueError):
        return  # the format does not store the mode
    expected = open_image(body)
    if target is None:
        expected = expected.convert("L") if expected.mode == "1" else expected
    else:
        expected = expected.convert(target)
    with pytest.MonkeyPatch.context() as patch:
        if not has_simplejpeg:
            patch.setattr(decoders, "_simplejpeg", lambda: None)
        np.testing.assert_array_equal(decode_one(body, mode=target), pixels(expected))


@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    resize=st.one_of(st.integers(1, 60), st.tuples(st.integers(1, 60), st.integers(1, 60))),
    resample=st.sampled_from(["bilinear", "nearest", "bicubic", "lanczos", "box", "hamming"]),
)
@settings(max_examples=100, deadline=None)
def test_resized_pixels_are_those_of_pillow(size, resize, resample):
    body = encode(picture(*size), "PNG")
    options = ImageOptions(resize=resize)
    height, width = options.geometry(*size, (0, 0)).size
    expected = open_image(body).resize((width, height), Image.Resampling[resample.upper()])
    decoded = decode_one(body, resize=resize, resample=resample)
    np.testing.assert_array_equal(decoded, pixels(expected))


@given(
    size=st.tuples(st.integers(4, 60), st.integers(4, 60)),
    resize=st.tuples(st.integers(4, 60), st.integers(4, 60)),
    crop=st.sampled_from(["center", "random"]),
)
@settings(max_examples=100, deadline=None)
def test_a_crop_has_the_pixels_of_the_resized_image(size, resize, crop):
    body = encode(picture(*size), "PNG")
    options = {"resize": resize, "crop": crop, "crop_size": (3, 4)}
    place = ImageOptions(**options).geometry(*size, (0.5, 0.5))
    whole = open_image(body).resize(resize[::-1], Image.Resampling.BILINEAR)
    box = (place.left, place.top, place.left + 4, place.top + 3)
    decoded = decode_one(body, **options).astype(int)
    # Pillow rounds the edges of a crop to 32-bit floats.
    assert np.abs(decoded - pixels(whole.crop(box))).max() <= 1


def test_decoders_give_the_same_pixels(monkeypatch):
    pytest.importorskip("simplejpeg")
    for options in ({}, {"resize": 31}, {"resize": (50, 70), "crop": "center"}, {"mode": "L"}):
        for subsampling in (0, 1, 2):
            for mode in ("RGB", "L"):
                body = encode(picture(101, 143, mode), subsampling=subsampling, quality=80)
                decoded = decode_one(body, **options)
                with monkeypatch.context() as patch:
                    patch.setattr(decoders, "_simplejpeg", lambda: None)
                    np.testing.assert_array_equal(decoded, decode_one(body, **options))


def test_a_draft_is_close_to_the_exact_result(decoder):
    body = encode(picture(400, 600), quality=95)
    for side in (25, 40, 60, 100):
        draft = decode_one(body, resize=side).astype(int)
        exact = decode_one(body, resize=side, draft=False)
        whole = open_image(body).resize(exact.shape[1::-1], Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(exact, pixels(whole))
        assert draft.shape == exact.shape
        assert 0 < np.abs(draft - exact).mean() < 2, side


def test_a_draft_decodes_fewer_pixels(monkeypatch):
    jpeg, sizes = pytest.importorskip("simplejpeg"), []

    class Spy:
        decode_jpeg_header = jpeg.decode_jpeg_header

        @staticmethod
        def decode_jpeg(*arguments, **options):
            decoded = jpeg.decode_jpeg(*arguments, **options)
            sizes.append(decoded.shape[:2])
            return decoded

    monkeypatch.setattr(decoders, "_simplejpeg", lambda: Spy)
    body = encode(picture(401, 603))
    for side in (400, 201, 100, 50, 25, 10):
        decode_one(body, resize=side)
    decode_one(body, resize=25, resample="nearest")
    # Sides of 100, 50 and 25 are decoded at a half, a quarter and an eighth. An eighth is the
    # smallest scale, and "nearest" decodes all pixels.
    smaller = [(201, 302), (101, 151), (51, 76), (51, 76)]
    assert sizes == [(401, 603), (401, 603), *smaller, (401, 603)]


def test_16_bit_gray_keeps_the_high_byte(tmp_path):
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    body = encode(Image.fromarray(values), "PNG")
    column = write(tmp_path / "ds", [body], "png")["image"]
    high = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    np.testing.assert_array_equal(column.decode()[0], high)
    np.testing.assert_array_equal(column.decode(mode=None)[0, ..., 0], values)


def test_images_of_float32_have_no_color(tmp_path):
    body = encode(Image.fromarray(np.ones((3, 4), np.float32)), "TIFF")
    column = write(tmp_path / "ds", [body], "bytes")["image"]
    with pytest.raises(FormatError, match=r"column 'image'.*mode 'F'.*give mode=None"):
        column.decode()
    assert column.decode(mode=None).dtype == np.float32


def test_palettes_with_transparency_do_not_warn():
    image = picture(8, 8).quantize(4)
    image.info["transparency"] = bytes([0, 255, 128, 7])
    body = encode(image, "PNG", transparency=image.info["transparency"])
    np.testing.assert_array_equal(
        decode_one(body), pixels(open_image(body).convert("RGBA"))[..., :3]
    )


def test_raw_pixels_and_bytes_are_decoded(tmp_path):
    image = picture(6, 5)
    ds = write(tmp_path / "pil", [image], "pil")
    np.testing.assert_array_equal(ds["image"].decode()[0], pixels(image))
    ds = write(tmp_path / "bytes", [encode(image, "WEBP", lossless=True)], "bytes")
    np.testing.assert_array_equal(ds["image"].decode()[0], pixels(image))
    np.testing.assert_array_equal(ds["image"].view("jpeg").decode()[0], pixels(image))


def test_the_orientation_of_exif_is_left_as_pillow_leaves_it(decoder):
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation: rotated by 90 degrees
    body = encode(picture(20, 30), exif=exif)
    assert decode_one(body).shape == (20, 30, 3)


def test_no_images(tmp_path):
    ds = write(tmp_path / "ds", [encode(picture(4, 4))])[:0]
    assert ds["image"].decode().shape == (0, 0, 0, 3)
    assert ds["image"].decode(resize=(5, 6), mode="L").shape == (0, 5, 6, 1)
    assert ds.load(decode=True)["image"].dtype == np.uint8


def test_a_transform_takes_and_returns_arrays(tmp_path, decoder):
    bodies = [encode(picture(24, 32, seed=k)) for k in range(5)]
    column = write(tmp_path / "ds", bodies)["image"]
    runs_in_main_thread = set()

    def to_floats(image):
        runs_in_main_thread.add(threading.current_thread() is threading.main_thread())
        return image.transpose(2, 0, 1).astype(np.float32) / 255

    images = column.decode(transform=to_floats)
    assert images.dtype == np.float32
    assert runs_in_main_thread == {False}
    np.testing.assert_array_equal(images, column.decode().transpose(0, 3, 1, 2).astype("f4") / 255)
    numbers = iter(range(5))
    uneven = column.decode(transform=lambda image: image[: 1 + next(numbers)])
    assert sorted(len(image) for image in uneven) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (None, TypeError, "it returned a NoneType: expected an array"),
        ("x", TypeError, "it returned a str"),
        (np.array(["x"]), TypeError, "it returned an array of <U1: expected numbers"),
    ],
)
def test_a_transform_that_returns_no_array_is_named(tmp_path, result, error, message):
    column = write(tmp_path / "ds", [encode(picture(4, 4))] * 3)["image"]
    with pytest.raises(error, match=message) as caught:
        column.decode(transform=lambda image: result)
    assert "shard.00000.mds" in str(caught.value.__notes__)
    assert "column 'image'" in str(caught.value.__notes__)


def test_the_exception_of_a_transform_keeps_its_type(tmp_path):
    column = write(tmp_path / "ds", [encode(picture(4, 4))] * 3)["image"]

    def fail(image):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine") as caught:
        column.decode(transform=fail)
    assert "transform= of decode" in str(caught.value.__notes__)

    def stop(image):
        raise StopIteration

    with pytest.raises(RuntimeError, match="transform= of decode"):
        column.decode(transform=stop)


@pytest.mark.parametrize("cut", [2, 30, -40])
def test_a_damaged_image_is_named(tmp_path, decoder, cut):
    bodies = [encode(picture(64, 64, seed=k)) for k in range(8)]
    for row in (3, 6):
        bodies[row] = bodies[row][:cut]
    ds = write(tmp_path / "ds", bodies)
    with pytest.raises(FormatError, match=r"shard.00000.mds.*sample 3.*column 'image'"):
        ds["image"].decode()
    with pytest.raises(FormatError, match=r"sample 6"):
        ds[4:].load(decode=True)
    assert len(ds[:3]["image"].decode()) == 3


def test_a_decompression_bomb_is_refused(tmp_path, decoder, monkeypatch):
    body = encode(picture(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(FormatError, match="decompression bomb"):
        write(tmp_path / "ds", [body])["image"].decode()


def test_images_too_large_together_are_refused(monkeypatch):
    monkeypatch.setattr("npstream._core.memory.available_memory", lambda: 1 << 20)
    shape = (1000, 1000, 3)
    stack = ImageStack(100, lambda row, stack: stack.slot(row, shape, np.dtype("u1")), shape, True)
    stack.decode()
    _, error = stack.first_error()
    assert isinstance(error, MemoryError)
    # If other images may be smaller than the first one, each becomes an array of its own.
    single_images = ImageStack(100, lambda row, stack: np.zeros((1,)), shape, False)
    assert single_images.slot(0, shape, np.dtype("u1")) is None


def test_random_crops_depend_on_seed_and_position(tmp_path):
    body = encode(picture(64, 64), "PNG")
    column = write(tmp_path / "ds", [body] * 30, "png")["image"]
    crops = column.decode(crop="random", crop_size=16)
    np.testing.assert_array_equal(crops, column.decode(crop="random", crop_size=16))
    assert len({crop.tobytes() for crop in crops}) > 25
    assert not np.array_equal(crops, column.decode(crop="random", crop_size=16, seed=1))
    np.testing.assert_array_equal(column[5:].decode(crop="random", crop_size=16), crops[:25])


def test_plugins_of_pillow_are_imported_before_threads_start(tmp_path, monkeypatch):
    column = write(tmp_path / "ds", [encode(picture(4, 4), "WEBP")], "bytes")["image"]
    monkeypatch.setattr(Image, "_initialized", 0)
    initialized = column.decode(mode="L", transform=lambda image: np.int64(Image._initialized))
    assert initialized.tolist() == [2]  # after Image.init()


def test_threads_end_with_the_read(tmp_path):
    column = write(tmp_path / "ds", [encode(picture(16, 16))] * 20)["image"]
    column.decode()
    with pytest.raises(ZeroDivisionError):
        column.decode(transform=lambda image: 1 // 0)
    assert not started_threads("npstream-images")


def test_the_first_damaged_row_is_named_for_any_number_of_threads():
    def decode(row, stack):
        if row % 7 == 5:
            raise ValueError(row)
        return np.zeros(1)

    for count in (1, 2, 8):
        pool, stack = DecodeThreads(count), ImageStack(100, decode, (1,), False)
        for future in pool.start([stack]):
            future.result()
        pool.close()
        row, error = stack.first_error()
        assert (row, str(error)) == (5, "5")
        assert len(stack.images(row)) == 5


def test_without_pillow_the_error_names_the_extra(tmp_path, monkeypatch):
    ds = write(tmp_path / "ds", [encode(picture(4, 4))])
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(npstream.errors.MissingDependencyError, match=r"npstream\[images\]"):
        ds.load(decode=True)


# Memory of decoded images is used again once no array needs it.


@pytest.fixture
def flat_images(tmp_path):
    """Return a dataset of 200 images of 48,000 bytes; all pixels of image k have the value k."""
    samples = ({"image": Image.new("L", (240, 200), k)} for k in range(200))
    npstream.write(tmp_path / "ds", samples, columns={"image": "png"})
    return npstream.open(tmp_path / "ds")


def test_batches_that_are_kept_do_not_change(flat_images):
    kept = []
    # A batch of 32 images is large enough for memory of the pool.
    batches = flat_images.iter(0, 1, batch_size=32, decode={"image": {"mode": "L"}})
    for step, batch in enumerate(batches):
        if step % 2 == 0:
            kept.append(batch)
        for old in kept:
            assert (old["image"] == old.ids.reshape(-1, 1, 1, 1)).all()
    assert len(kept) == 4


def test_a_loop_uses_few_buffers(flat_images):
    batches = flat_images.iter(0, 1, batch_size=32, decode={"image": {"mode": "L"}})
    addresses = [address_of(batch["image"]) for batch in batches]
    assert len(addresses) == 7
    assert len(set(addresses)) <= 3

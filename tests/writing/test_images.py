"""Images are stored as the files they come from, or without loss."""

from __future__ import annotations

import contextlib
import io
import os

import pytest
from PIL import Image
from rewriting import jpeg, write_and_open

import npstream


def test_images_of_jpeg_files_are_stored_as_their_files(tmp_path):
    for k in range(3):
        (tmp_path / f"{k}.jpg").write_bytes(jpeg(k))
    files = [jpeg(k) for k in range(3)]

    def open_path(k):
        return stack.enter_context(Image.open(tmp_path / f"{k}.jpg"))

    def open_and_load(k):
        image = open_path(k)
        image.load()
        return image

    def open_bytes(k):
        return Image.open(io.BytesIO(files[k]))

    with contextlib.ExitStack() as stack:
        for number, make_image in enumerate((open_path, open_and_load, open_bytes)):
            samples = ({"image": make_image(k)} for k in range(3))
            report, ds = write_and_open(tmp_path / str(number), samples)
            assert report.columns == {"image": "jpeg"}
            assert list(map(bytes, ds["image"].load())) == files
            columns = {"image": [make_image(k) for k in range(3)]}
            report, ds = write_and_open(tmp_path / f"{number}c", columns)
            assert list(map(bytes, ds["image"].load())) == files


def test_other_images_do_not_lose_their_pixels_to_jpeg(tmp_path):
    painted = Image.open(io.BytesIO(jpeg(1)))
    painted.paste((255, 0, 0), (0, 0, 4, 4))
    for other in (Image.new("RGB", (2, 2)), painted):
        first = {"image": Image.open(io.BytesIO(jpeg(0)))}
        with pytest.raises(ValueError, match=r"sample 1: .*JPEG would change its pixels.*'png'"):
            npstream.write(tmp_path / "out", [first, {"image": other}])
        report, ds = write_and_open(tmp_path / str(other.size), [{"image": other}, first])
        assert report.columns == {"image": "png"}
        assert ds[0]["image"].tobytes() == other.tobytes()
    images = [first, {"image": painted}]
    assert write_and_open(tmp_path / "named", images, columns={"image": "jpeg"})[0].samples == 2


def test_a_file_that_was_replaced_is_not_the_image(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(0))
    with Image.open(path) as image:
        (tmp_path / "b").write_bytes(jpeg(1))
        os.replace(tmp_path / "b", path)
        _, ds = write_and_open(tmp_path / "out", [{"image": image}])
    assert bytes(ds["image"].load()[0]) == jpeg(0)


def test_a_later_frame_of_a_file_is_not_stored_as_the_file(tmp_path):
    images = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    images[0].save(tmp_path / "a.mpo", save_all=True, append_images=images[1:])
    with Image.open(tmp_path / "a.mpo") as file:
        assert npstream.write(tmp_path / "first", [{"x": file}]).columns == {"x": "jpeg"}
        file.seek(1)
        report, ds = write_and_open(tmp_path / "second", [{"x": file}])
        assert report.columns == {"x": "png"}
        assert ds[0]["x"].tobytes() == file.tobytes()


def test_ragged_images_of_unknown_encoding(tmp_path):
    files = npstream.Ragged.from_list([jpeg(0), jpeg(1)], "image")
    assert npstream.write(tmp_path / "a", {"x": files}).columns == {"x": "jpeg"}
    raw = npstream.Ragged.from_list([b"abc"], "image")
    with pytest.raises(TypeError, match="column 'x': the encoding of its images is unknown"):
        npstream.write(tmp_path / "b", {"x": raw})
    _, ds = write_and_open(tmp_path / "c", {"x": files}, columns={"x": "bytes"})
    assert list(ds["x"]) == [jpeg(0), jpeg(1)]


@pytest.mark.parametrize(
    "kind", [bytes, bytearray, memoryview, lambda file: Image.open(io.BytesIO(file))]
)
@pytest.mark.parametrize("outer", [list, tuple])
def test_a_jpeg_array_takes_any_bytes_and_images(kind, outer, tmp_path):
    files = [jpeg(0), jpeg(1)]
    npstream.write(tmp_path / "a", [{"x": files}], columns={"x": "jpeg_array"})
    npstream.write(tmp_path / "b", [{"x": outer(map(kind, files))}], columns={"x": "jpeg_array"})
    a, b = ((tmp_path / name / "shard.00000.mds").read_bytes() for name in "ab")
    assert a == b

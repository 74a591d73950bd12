"""The options of decoding: valid and invalid values, and the size and place of resize and crop."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

import npstream
from npstream.errors import ColumnError
from npstream.reading.images.options import ImageOptions, image_options

SIDES = st.integers(1, 300)
FRACTIONS = st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2)


@given(SIDES, SIDES, SIDES)
def test_one_number_resizes_the_shorter_side_as_torchvision_does(height, width, side):
    size = ImageOptions(resize=side).geometry(height, width, (0, 0)).size
    short, long = sorted((height, width))
    expected = sorted((side, max(1, int(side * long / short))))
    assert sorted(size) == expected
    assert (size[0] <= size[1]) == (height <= width) or size[0] == size[1]


@given(SIDES, SIDES, SIDES, SIDES, FRACTIONS, st.sampled_from(["center", "random"]))
def test_the_resized_image_covers_the_crop(height, width, rows, columns, fractions, crop):
    options = ImageOptions(resize=(rows, columns), crop=crop)
    geometry = options.geometry(height, width, fractions)
    assert (geometry.height, geometry.width) == (rows, columns) == options.fixed_size
    assert geometry.size[0] == rows or geometry.size[1] == columns  # no smaller cover
    assert 0 <= geometry.top <= geometry.size[0] - rows
    assert 0 <= geometry.left <= geometry.size[1] - columns
    scale = max(rows / height, columns / width)
    assert abs(geometry.size[0] - height * scale) <= 1
    assert abs(geometry.size[1] - width * scale) <= 1


def test_a_center_crop_is_at_the_place_of_torchvision():
    options = ImageOptions(resize=256, crop_size=224)
    assert options.crop == "center"
    geometry = options.geometry(375, 500, (0.9, 0.9))
    assert geometry == ((256, 341), round((256 - 224) / 2), round((341 - 224) / 2), 224, 224)


def test_a_random_crop_reaches_every_place():
    options = ImageOptions(crop="random", crop_size=(8, 5))
    places = [options.geometry(10, 6, (k / 12, k / 12)) for k in range(12)]
    assert {place.top for place in places} == {0, 1, 2}
    assert {place.left for place in places} == {0, 1}


def test_a_crop_that_does_not_fit_says_what_to_do():
    with pytest.raises(ValueError, match=r"height 10 and width 6, less .* 8 and 7: give resize="):
        ImageOptions(crop_size=(8, 7)).geometry(10, 6, (0, 0))
    with pytest.raises(ValueError, match="height 4 and width 6 after resize"):
        ImageOptions(resize=4, crop_size=5).geometry(10, 15, (0, 0))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "BGR"}, ValueError, "mode='BGR': expected one of 'RGB', 'L', 'RGBA', None"),
        ({"mode": ["RGB"]}, ValueError, "mode="),
        ({"crop": "corner"}, ValueError, "crop='corner': expected one of 'center', 'random'"),
        ({"crop": "center"}, ValueError, "crop='center': give crop_size=, or resize="),
        ({"resize": 0}, ValueError, "resize"),
        ({"resize": 2.5}, TypeError, "resize"),
        ({"resize": (1, 2, 3)}, ValueError, r"resize=\(1, 2, 3\): expected height and width"),
        ({"crop_size": (4, -1)}, ValueError, "the width of crop_size"),
        ({"resample": "cubic"}, ValueError, "resample='cubic'.*'bicubic'"),
        ({"draft": 1}, TypeError, "draft=1: expected True or False"),
        ({"transform": 3}, TypeError, "transform=3: expected a function"),
        ({"size": 3}, ValueError, "decode has the unknown option 'size': expected mode, resize"),
        (3, TypeError, "decode is 3: expected True, or options"),
    ],
)
def test_invalid_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        image_options(options, "decode")


def test_options_are_pickled():
    options = ImageOptions(resize=(4, 5), crop="random")
    again = pickle.loads(pickle.dumps(options))
    assert again == options
    assert again.fixed_size == (4, 5)


@pytest.fixture
def ds(tmp_path):
    sample = {"image": b"\xff\xd8\xff", "file": b"x", "n": 1, "text": "a"}
    columns = {"image": "jpeg", "file": "bytes", "n": "int", "text": "str"}
    npstream.write(tmp_path / "ds", [sample], columns=columns)
    return npstream.open(tmp_path / "ds")


@pytest.mark.parametrize(
    ("decode", "error", "message"),
    [
        ("imag", ColumnError, "did you mean 'image'"),
        (["n"], TypeError, "column 'n' is stored as 'int'"),
        ({"text": True}, TypeError, "column 'text' is stored as 'str'"),
        ({"image": {"resise": 3}}, ValueError, r"decode\['image'\] has the unknown option"),
        (7, TypeError, "decode=7: expected True, names of columns, or options by name"),
    ],
)
def test_invalid_columns_are_refused_before_anything_is_read(ds, decode, error, message):
    ds.close()
    with pytest.raises(error, match=message):
        ds.load(decode=decode)
    with pytest.raises(error, match=message):
        ds.iter(0, 1, batch_size=1, decode=decode)


def test_true_needs_a_column_of_images(ds):
    with pytest.raises(ValueError, match=r"decode=True: no column .*'file' \(bytes\)"):
        ds[["file", "n"]].load(decode=True)


def test_only_columns_of_bytes_and_images_decode(ds):
    with pytest.raises(TypeError, match="column 'n' is stored as 'int'"):
        ds["n"].decode()

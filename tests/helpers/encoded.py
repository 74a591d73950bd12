"""Values for tests of encodings: dtypes, images, and image files."""

from __future__ import annotations

import io
import operator

import numpy as np
import pytest
from PIL import Image

from npstream.formats.encodings.encodings import (
    DTYPE_CODES,
)

DTYPES = [dtype.name for dtype in DTYPE_CODES.values()]


def numbered_params(rows, name=operator.itemgetter("encoding")):
    return [pytest.param(row, id=f"{i}-{name(row)}") for i, row in enumerate(rows)]


def random_image(mode="RGB", size=(6, 5), seed=0):
    image = Image.new(mode, size)
    pixels = np.random.default_rng(seed).bytes(len(image.tobytes()))
    return Image.frombytes(mode, size, pixels)


def image_file(kind, **options):
    file = io.BytesIO()
    random_image(**options).save(file, kind)
    return file.getvalue()

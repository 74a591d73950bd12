"""Helpers that write data and open the dataset, and that make images."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

import npstream


def write_and_open(root, data, **options):
    """Write data, verify the dataset, and return the report and the opened dataset."""
    report = npstream.write(root, data, **options)
    assert npstream.verify_dataset(root).problems == ()
    return report, npstream.open(root, allow_pickle=True)


def jpeg(seed):
    """Return the bytes of a JPEG file with random pixels."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(file, "jpeg")
    return file.getvalue()

"""Decoding of images in batches, compared with bare loops and with torch's DataLoader.

J is the dataset of JPEG files in `data.py`. The figures use 4,096 of its images.

The figure `epoch_of_streaming` needs the package mosaicml-streaming. This package needs other
versions of some packages than npstream's tests: install both in a venv of their own.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from PIL import Image

import npstream
from data import Data
from figures import SIDES, Figure, Pair, compare_and_time, figure, require, warm
from npstream.reading.images import decoders
from npstream.reading.images.options import ImageOptions

BATCH = 64
IMAGES = 4096
SIZE = (128, 192)
THREADS = 2


def open_jpegs(data: Data) -> npstream.Dataset:
    dataset = npstream.open(data.jpegs_dataset())[:IMAGES]
    warm(dataset)
    return dataset


def decode_dataset(dataset: npstream.Dataset, options: Any = True) -> int:
    """Decode all images in batches, and return the sum of their first pixels."""
    batches = dataset.iter(0, 1, batch_size=BATCH, last="short", decode={"image": options})
    return sum(int(batch["image"][:, 0, 0].sum()) for batch in batches)


def decode_files(files: list[bytes], decode: Callable[[bytes], np.ndarray]) -> int:
    """Decode all images by a function in a loop over batches, in two threads."""
    total = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(files), BATCH):
            batch = files[start : start + BATCH]
            halves = [batch[k::THREADS] for k in range(THREADS)]
            for images in pool.map(lambda half: [decode(file) for file in half], halves):
                total += sum(int(image[0, 0].sum()) for image in images)
    return total


def decode_with_pillow(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)))


def decode_without_simplejpeg(dataset: npstream.Dataset) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoders, "_simplejpeg", lambda: None)
        return decode_dataset(dataset)


@figure(
    "J decoded with simplejpeg by `ds.iter(batch_size=64, decode=True)`, 2 cores, for an image",
    "a loop over batches of `simplejpeg.decode_jpeg` in 2 threads",
    factor=1.1,
    rounds=7,
)
def simplejpeg(data: Data) -> Pair:
    jpeg = require("simplejpeg", "simplejpeg")
    dataset, files = open_jpegs(data), data.jpegs()[:IMAGES]
    return Pair(
        lambda number: decode_dataset(dataset),
        lambda number: decode_files(files, jpeg.decode_jpeg),
        equal,
        calls=len(files),
    )


@figure(
    "the same with Pillow",
    "a loop over batches of `np.asarray(PIL.Image.open(...))` in 2 threads",
    factor=1.1,
    rounds=7,
)
def pillow(data: Data) -> Pair:
    dataset, files = open_jpegs(data), data.jpegs()[:IMAGES]
    return Pair(
        lambda number: decode_without_simplejpeg(dataset),
        lambda number: decode_files(files, decode_with_pillow),
        equal,
        calls=len(files),
    )


@figure(
    "J decoded with simplejpeg by `ds.iter(batch_size=64, decode=True)`, 2 cores, for an image",
    "the same with Pillow",
    factor=1 / 1.5,
    rounds=7,
)
def simplejpeg_and_pillow(data: Data) -> Pair:
    require("simplejpeg", "simplejpeg")
    dataset = open_jpegs(data)
    return Pair(
        lambda number: decode_dataset(dataset),
        lambda number: decode_without_simplejpeg(dataset),
        equal,
        calls=len(dataset),
    )


class FolderDataset:
    """The images of a folder, decoded as npstream decodes them: a dataset for torch."""

    def __init__(self, data: Data) -> None:
        self.paths = sorted(data.jpeg_folders().rglob("*.jpg"))[:IMAGES]
        self.options = ImageOptions(resize=SIZE)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> np.ndarray:
        body = self.paths[row].read_bytes()
        return decoders.decode_image(body, "jpeg", self.options, (0, 0), lambda *array: None)


@figure(
    "an epoch of J decoded and resized to 128 x 192, shuffled, 2 cores, for an image",
    "torch's DataLoader with 2 workers over a folder of files, with the same decoder",
    factor=1 / 1.1,
    rounds=7,
)
def epoch(data: Data) -> Pair:
    torch = require("torch", "torch")
    dataset, folder = open_jpegs(data), FolderDataset(data)
    batches = dataset.iter(
        0, 1, batch_size=BATCH, shuffle=True, last="short", decode={"image": {"resize": SIZE}}
    )
    loader = torch.utils.data.DataLoader(
        folder, batch_size=BATCH, shuffle=True, num_workers=THREADS, persistent_workers=True
    )
    return Pair(
        lambda number: sum(len(batch.to_torch()["image"]) for batch in batches),
        lambda number: sum(len(batch) for batch in loader),
        equal,
        calls=len(folder),
    )


@figure(
    "an epoch of J decoded and resized to 128 x 192, shuffled, 2 cores, for an image",
    "torch's DataLoader with 2 workers over Streaming's StreamingDataset, with the same decoder",
    factor=1 / 1.1,
    rounds=7,
)
def epoch_of_streaming(data: Data) -> Pair:
    torch = require("torch", "torch")
    streaming = require("streaming", "mosaicml-streaming")
    pair, options = epoch.prepare(data), ImageOptions(resize=SIZE)
    path = data.jpegs_dataset()

    class Images(streaming.StreamingDataset):  # type: ignore[misc, name-defined]
        """J, decoded as npstream decodes it. Its epochs and those of npstream have equal sizes."""

        def __getitem__(self, row: Any) -> Any:
            body = super().__getitem__(row)["image"]
            return decoders.decode_image(body, "jpeg", options, (0, 0), lambda *array: None)

    streaming.base.util.clean_stale_shared_memory()
    images = min(IMAGES, len(npstream.open(path)))
    dataset = Images(local=str(path), shuffle=True, batch_size=BATCH, epoch_size=images)
    for shard in dataset.shards:
        shard.column_encodings = ["bytes"]  # otherwise, Pillow opens each image as well
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=BATCH, num_workers=THREADS, persistent_workers=True
    )
    return Pair(pair.npstream, lambda number: sum(map(len, loader)), equal, calls=images)


def equal(left: int, right: int) -> None:
    assert left == right


FIGURES = [simplejpeg, pillow, simplejpeg_and_pillow, epoch, epoch_of_streaming]
INSTALLED = FIGURES if find_spec("streaming") else FIGURES[:-1]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("figure", INSTALLED, ids=lambda figure: figure.prepare.__name__)
def test_images(figure: Figure, side: str, benchmark: Any, data: Data) -> None:
    compare_and_time(figure, side, benchmark, data)

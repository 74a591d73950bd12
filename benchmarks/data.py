"""Datasets of the benchmarks, created once and kept outside the repository.

T has tokens, S has small mixed samples, I has images, V has volumes, J has JPEG files, and E has
embeddings. The reference measurements read plain files with the same bytes as a dataset. The images
of I are random bytes with the size of a typical JPEG, because no benchmark decodes them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import npstream

TOKENS = 1024
RECORD = np.dtype([("id", "<i8"), ("tokens", "<u2", TOKENS)])


@dataclass(frozen=True)
class Data:
    """The directory of all datasets, and their sizes."""

    directory: Path
    tokens: int = 200_000
    """Samples of T."""
    small: int = 1_000_000
    """Samples of S."""
    images: int = 20_000
    """Samples of I, and of J."""
    volumes: int = 2_000
    """Samples of V."""
    cold_bytes: int = 4 << 30
    """Bytes of `cold_file`."""
    shards: tuple[int, ...] = (10_000, 100_000)
    """Numbers of shards, each for a dataset of `index_only`."""

    def path(self, name: str, make: Callable[[Path], None]) -> Path:
        """Return the path of a file or directory; if it is missing, `make` creates it."""
        path = self.directory / name
        if not path.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{name}.partial-{os.getpid()}")
            make(partial)
            partial.rename(path)
        return path

    def records_file(self) -> Path:
        """Return the file of T as one packed record array."""

        def make(path: Path) -> None:
            records = np.empty(self.tokens, RECORD)
            records["id"] = np.arange(self.tokens)
            records["tokens"] = make_generator(1).integers(
                0, 50_000, (self.tokens, TOKENS), dtype=np.uint16
            )
            records.tofile(path)

        return self.path(f"T-{self.tokens}.records", make)

    def records(self) -> np.memmap:
        """Memory-map T's packed record array."""
        return np.memmap(self.records_file(), RECORD, "r")

    def tokens_file(self) -> Path:
        """Return the file of T's tokens without ids."""
        return self.path(
            f"T-{self.tokens}.tokens",
            lambda path: np.ascontiguousarray(self.records()["tokens"]).tofile(path),
        )

    def token_map(self) -> np.memmap:
        """Memory-map T's tokens."""
        return np.memmap(self.tokens_file(), np.uint16, "r").reshape(-1, TOKENS)

    def token_arrays(self) -> dict[str, np.ndarray]:
        """Return T's columns in memory."""
        records = self.records()
        return {name: np.ascontiguousarray(records[name]) for name in ("tokens", "id")}

    def tokens_dataset(self) -> Path:
        """Return T as a dataset."""

        def make(path: Path) -> None:
            npstream.write(path, self.token_arrays())

        return self.path(f"T-{self.tokens}", make)

    def texts(self) -> Iterator[str]:
        """Yield S's texts: 20 to 200 letters each."""
        lengths = make_generator(2).integers(20, 201, self.small)
        letters = (
            make_generator(3).integers(97, 123, lengths.sum(), dtype=np.uint8).tobytes().decode()
        )
        end = 0
        for length in lengths.tolist():
            start, end = end, end + length
            yield letters[start:end]

    def labels(self) -> np.ndarray:
        """Return S's labels."""
        return make_generator(4).integers(0, 1000, self.small, dtype=np.int32)

    def small_dataset(self) -> Path:
        """Return S as a dataset."""

        def make(path: Path) -> None:
            columns = {"id": "int", "label": "int32", "text": "str"}
            rows = zip(self.labels(), self.texts(), strict=True)
            samples: Iterator[dict[str, Any]] = (
                {"id": number, "label": label, "text": text}
                for number, (label, text) in enumerate(rows)
            )
            npstream.write(path, samples, columns=columns)

        return self.path(f"S-{self.small}", make)

    def tokens_table(self) -> Any:
        """Return T as an Arrow table of one chunk."""
        import pyarrow as pa

        columns = self.token_arrays()
        values = pa.array(columns["tokens"].reshape(-1))
        return pa.table(
            {"id": columns["id"], "tokens": pa.FixedSizeListArray.from_arrays(values, TOKENS)}
        )

    def small_samples(self) -> list[dict[str, Any]]:
        """Return S as samples."""
        rows = zip(self.labels().tolist(), self.texts(), strict=True)
        return [
            {"id": number, "label": label, "text": text}
            for number, (label, text) in enumerate(rows)
        ]

    def small_table(self) -> Any:
        """Return S as an Arrow table of one chunk."""
        import pyarrow as pa

        texts = pa.array(self.texts(), pa.string())
        return pa.table({"id": np.arange(self.small), "label": self.labels(), "text": texts})

    def small_parquet(self) -> Path:
        """Return S as a Parquet file."""

        def make(path: Path) -> None:
            import pyarrow.parquet as pq

            pq.write_table(self.small_table(), path)

        return self.path(f"S-{self.small}.parquet", make)

    def small_rows(self) -> tuple[Path, np.ndarray]:
        """Return a file of S's contiguous rows (id, label, text), and the offset of each row."""

        def make(path: Path) -> None:
            path.mkdir()
            offsets = [0]
            with (path / "rows").open("wb") as file:
                for number, (label, text) in enumerate(
                    zip(self.labels(), self.texts(), strict=True)
                ):
                    file.write(number.to_bytes(8, "little") + label.tobytes() + text.encode())
                    offsets.append(file.tell())
            np.save(path / "offsets.npy", np.array(offsets))

        path = self.path(f"S-{self.small}.rows", make)
        return path / "rows", np.load(path / "offsets.npy")

    def image_lengths(self) -> np.ndarray:
        """Return the size of each image of I, in bytes."""
        return make_generator(5).integers(20_000, 40_000, self.images)

    def images_file(self) -> Path:
        """Return the file of I's images, contiguous."""

        def make(path: Path) -> None:
            path.write_bytes(make_generator(6).bytes(int(self.image_lengths().sum())))

        return self.path(f"I-{self.images}.images", make)

    def images_dataset(self) -> Path:
        """Return I as a dataset."""

        def make(path: Path) -> None:
            ends = np.cumsum(self.image_lengths()).tolist()
            images = np.memmap(self.images_file(), np.uint8, "r")
            samples = (
                {"image": images[start:end].tobytes(), "label": number % 1000}
                for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
            )
            npstream.write(path, samples, columns={"image": "jpeg", "label": "int"})

        return self.path(f"I-{self.images}", make)

    def jpegs(self) -> list[bytes]:
        """Return J: different JPEG files of about 30 KB each."""

        def make(path: Path) -> None:
            path.mkdir()
            ends, generator = [0], make_generator(8)
            with (path / "files").open("wb") as file:
                for _ in range(self.images):
                    # Noise that is not too fine, so that JPEG has something to compress.
                    small = generator.integers(0, 256, (28, 42, 3), np.uint8)
                    image = Image.fromarray(small).resize((336, 224), Image.Resampling.BICUBIC)
                    fine = generator.integers(0, 40, (224, 336, 3), np.uint8)
                    pixels = np.asarray(image) // 8 * 7 + fine // 2
                    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=90)
                    ends.append(file.tell())
            np.save(path / "ends.npy", np.array(ends))

        path = self.path(f"J-{self.images}", make)
        data, ends = (path / "files").read_bytes(), np.load(path / "ends.npy").tolist()
        return [data[start:end] for start, end in pairwise(ends)]

    def jpegs_dataset(self) -> Path:
        """Return J as a dataset."""

        def make(path: Path) -> None:
            samples: Iterator[dict[str, Any]] = ({"image": file} for file in self.jpegs())
            npstream.write(path, samples, columns={"image": "jpeg"})

        return self.path(f"J-{self.images}.dataset", make)

    def jpeg_folders(self) -> Path:
        """Return J as files in a folder for each of 100 classes."""

        def make(path: Path) -> None:
            for number, file in enumerate(self.jpegs()):
                folder = path / f"class-{number % 100:02}"
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{number:05}.jpg").write_bytes(file)

        return self.path(f"J-{self.images}.folders", make)

    def volumes_dataset(self) -> Path:
        """Return V, volumes of 64 KiB, as a dataset."""

        def make(path: Path) -> None:
            shape = self.volumes, 64, 32, 32
            npstream.write(path, {"volume": make_generator(5).integers(0, 256, shape, np.uint8)})

        return self.path(f"V-{self.volumes}", make)

    @property
    def embedding_count(self) -> int:
        """The number of samples of E."""
        return self.tokens // 2

    def embeddings(self) -> np.memmap:
        """Memory-map the embeddings of E, 768 float32 each, from a .npy file."""

        def make(path: Path) -> None:
            with path.open("wb") as file:
                np.save(
                    file,
                    make_generator(5).standard_normal(
                        (self.embedding_count, 768), dtype=np.float32
                    ),
                )

        return np.load(self.path(f"E-{self.embedding_count}.npy", make), mmap_mode="r")

    def embeddings_dataset(self, *, added: bool) -> Path:
        """Return E as a dataset, with embeddings either as an added column or in its samples."""

        def make(path: Path) -> None:
            ids = {"id": np.arange(self.embedding_count)}
            if added:
                npstream.write(path, ids)
                npstream.add_columns(path, {"embedding": self.embeddings()})
            else:
                npstream.write(path, {**ids, "embedding": self.embeddings()})

        return self.path(f"E-{self.embedding_count}-{'added' if added else 'own'}", make)

    def cold_file(self) -> Path:
        """Return a large file of rows like T's tokens."""

        def make(path: Path) -> None:
            generator = make_generator(7)
            with path.open("wb") as file:
                for _ in range(self.cold_bytes >> 24):
                    file.write(generator.bytes(1 << 24))
                file.flush()
                os.fsync(file.fileno())

        return self.path(f"cold-{self.cold_bytes}.tokens", make)

    def cold_dataset(self) -> Path:
        """Return the rows of `cold_file` as a dataset."""

        def make(path: Path) -> None:
            rows = np.memmap(self.cold_file(), np.uint16, "r").reshape(-1, TOKENS)
            npstream.write(path, {"tokens": rows})
            sync(path)

        return self.path(f"cold-{self.cold_bytes}", make)

    def index_only(self, shards: int) -> Path:
        """Return a dataset with an index of many shards, but without the shards' files."""

        def make(path: Path) -> None:
            path.mkdir()
            entries = [index_entry(number) for number in range(shards)]
            (path / "index.json").write_text(json.dumps({"version": 2, "shards": entries}))

        return self.path(f"index-{shards}", make)


def make_generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def sync(path: Path) -> None:
    """Sync the files of a dataset to the disk."""
    for file in filter(Path.is_file, path.rglob("*")):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def index_entry(number: int) -> dict[str, Any]:
    """Return the index entry of a shard, in Streaming's form."""
    return {
        "column_encodings": ["int", "ndarray:uint16:1024"],
        "column_names": ["id", "tokens"],
        "column_sizes": [8, 2048],
        "compression": None,
        "format": "mds",
        "hashes": [],
        "raw_data": {"basename": f"shard.{number:05}.mds", "bytes": 67_100_000, "hashes": {}},
        "samples": 32_500,
        "size_limit": 1 << 26,
        "version": 2,
        "zip_data": None,
    }

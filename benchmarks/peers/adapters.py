"""How each package writes and reads the samples, in the way of its own documentation.

Packages are imported when they are used, because each is in an environment of its own. All
packages return the same batches: arrays of numbers, and lists of `str`. All read in one process,
without workers, and keep their own defaults for threads. Shards of npstream, Streaming, LitData and
WebDataset have at most about 64 MiB. No adapter asks for compression. Lance compresses text by
default.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from samples import TOKENS, Sample, Samples, stack

Batch = dict[str, Any]

BATCH = 256
SHARD = 1 << 26
"""Bytes of a shard, chunk or file."""

SEED = 1
POOL = 10_000
"""Samples in the shuffle buffer of packages that shuffle by a buffer."""


class Adapter:
    """A package; subclasses say how it is used.

    Parameters
    ----------
    samples : Samples
        The samples to write. Reading uses only their kind and their number.
    path : Path
        The directory of the dataset.
    """

    package: ClassVar[str]
    """The name that pip knows."""
    module: ClassVar[str]
    shuffle: ClassVar[str] = "all samples"
    """What the package shuffles."""
    has_random_access: ClassVar[bool] = True

    def __init__(self, samples: Samples, path: Path) -> None:
        self.samples, self.path, self.kind = samples, path, samples.kind

    def write(self) -> None:
        """Write the samples, which a generator yields one by one."""
        raise NotImplementedError

    def epoch(self, *, shuffled: bool) -> Iterable[Batch]:
        """Open the dataset, and yield its batches."""
        raise NotImplementedError

    def reader(self) -> Any:
        """Return an object whose items are single samples."""
        raise NotImplementedError


class Npstream(Adapter):
    package = module = "npstream"
    shuffle = "blocks of 1 GiB (default): here all samples"

    def write(self) -> None:
        import npstream

        columns = {
            "T": {"id": "int", "tokens": f"ndarray:uint16:{TOKENS}"},
            "S": {"id": "int", "label": "int32", "text": "str"},
        }[self.kind]
        npstream.write(self.path, self.samples, columns=columns, shard_size=SHARD)

    def epoch(self, *, shuffled: bool) -> Iterable[Batch]:
        import npstream

        batches = npstream.open(self.path).iter(
            0, 1, batch_size=BATCH, shuffle=shuffled, seed=SEED, last="short"
        )
        if self.kind == "T":
            yield from batches
        else:
            for batch in batches:
                yield {**batch, "text": list(batch["text"])}

    def reader(self) -> Any:
        import npstream

        return npstream.open(self.path)


class Streaming(Adapter):
    package, module = "mosaicml-streaming", "streaming"
    shuffle = "py1e (default)"

    def write(self) -> None:
        from streaming import MDSWriter

        columns = {
            "T": {"id": "int", "tokens": f"ndarray:uint16:{TOKENS}"},
            "S": {"id": "int", "label": "int32", "text": "str"},
        }[self.kind]
        with MDSWriter(out=str(self.path), columns=columns, size_limit=SHARD) as writer:
            for sample in self.samples:
                if self.kind == "S":  # MDSWriter takes no Python int for the encoding int32
                    sample["label"] = np.int32(sample["label"])
                writer.write(sample)

    def epoch(self, *, shuffled: bool) -> Iterable[Batch]:
        from torch.utils.data import DataLoader

        dataset = self.reader(shuffle=shuffled, shuffle_seed=SEED)
        return DataLoader(dataset, batch_size=BATCH, collate_fn=stack)

    def reader(self, **options: Any) -> Any:
        from streaming import StreamingDataset

        return StreamingDataset(local=str(self.path), batch_size=BATCH, **options)


class LitData(Adapter):
    package = module = "litdata"
    shuffle = "chunks, and samples in them"

    def write(self) -> None:
        from litdata import optimize

        optimize(
            fn=self.samples.__getitem__,
            inputs=list(range(self.samples.count)),
            output_dir=str(self.path),
            chunk_bytes=SHARD,
            num_workers=1,
        )

    def epoch(self, *, shuffled: bool) -> Iterable[Batch]:
        from litdata import StreamingDataLoader

        dataset = self.reader(shuffle=shuffled, seed=SEED)
        return StreamingDataLoader(dataset, batch_size=BATCH, collate_fn=stack)

    def reader(self, **options: Any) -> Any:
        from litdata import StreamingDataset

        return StreamingDataset(str(self.path), **options)


class WebDataset(Adapter):
    package = module = "webdataset"
    shuffle = f"shards, and a buffer of {POOL:,}"
    has_random_access = False

    def write(self) -> None:
        from webdataset import ShardWriter

        self.path.mkdir()
        pattern = str(self.path / "%06d.tar")
        with ShardWriter(pattern, maxcount=1 << 40, maxsize=SHARD, verbose=0) as writer:
            for sample in self.samples:
                # Each file in a tar takes at least 1 KB, so a sample is one file.
                key = {"__key__": f"{sample['id']:08}"}
                if self.kind == "T":
                    writer.write({**key, "npy": sample["tokens"]})
                else:
                    writer.write(
                        {**key, "json": {"label": sample["label"], "text": sample["text"]}}
                    )

    def _samples(self, shuffled: bool) -> Iterator[Sample]:
        from webdataset import WebDataset

        files = sorted(map(str, self.path.glob("*.tar")))
        dataset = WebDataset(files, shardshuffle=len(files) if shuffled else False, seed=SEED)
        if shuffled:
            dataset = dataset.shuffle(POOL, initial=POOL)
        for sample in dataset.decode():
            number = int(sample["__key__"])
            if self.kind == "T":
                yield {"id": number, "tokens": sample["npy"]}
            else:
                yield {"id": number, **sample["json"]}

    def epoch(self, *, shuffled: bool) -> Iterable[Batch]:
        return in_batches(self._samples(shuffled))

    def reader(self) -> Any:
        return OnlyFirst(self._samples(shuffled=False))


class Grain(Adapter):
    """Grain reads ArrayRecord, whose records are bytes: the samples are packed with `struct`."""

    package = module = "grain"
    heads: ClassVar[dict[str, struct.Struct]] = {
        "T": struct.Struct("<q"),
        "S": struct.Struct("<qi"),
    }

    def write(self) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        self.path.mkdir()
        writer = ArrayRecordWriter(
            str(self.path / "data.array_record"), "group_size:1,uncompressed"
        )
        pack = self.heads[self.kind].pack
        for sample in self.samples:
            if self.kind == "T":
                writer.write(pack(sample["id"]) + sample["tokens"].tobytes())
            else:
                writer.write(pack(sample["id"], sample["label"]) + sample["text"].encode())
        writer.close()

    def _decode(self, record: bytes) -> Sample:
        head = self.heads[self.kind]
        if self.kind == "T":
            return {
                "id": head.unpack_from(record)[0],
                "tokens": np.frombuffer(record, np.uint16, TOKENS, head.size),
            }
        number, label = head.unpack_from(record)
        return {"id": number, "label": label, "text": record[head.size :].decode()}

    def reader(self) -> Any:
        import grain

        source = grain.sources.ArrayRecordDataSource(str(self.path / "data.array_record"))
        return grain.MapDataset.source(source).map(self._decode)

    def epoch(self, *, shuffled: bool) -> Iterable[Batch]:
        dataset = self.reader()
        if shuffled:
            dataset = dataset.shuffle(seed=SEED)
        return iter(dataset.batch(BATCH, batch_fn=stack).to_iter_dataset())


class HuggingFace(Adapter):
    package = module = "datasets"

    def write(self) -> None:
        import datasets

        datasets.disable_progress_bars()
        features = {"id": datasets.Value("int64")}
        if self.kind == "T":
            features["tokens"] = datasets.List(datasets.Value("uint16"), length=TOKENS)
        else:
            features |= {"label": datasets.Value("int32"), "text": datasets.Value("string")}
        datasets.Dataset.from_generator(
            self.samples.__iter__,
            features=datasets.Features(features),
            cache_dir=str(self.path),
            fingerprint="samples",  # without it, the generator would be pickled and hashed
        )

    def _open(self) -> Any:
        import datasets

        datasets.disable_progress_bars()
        files = sorted(map(str, self.path.rglob("generator-*.arrow")))
        return datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files])

    def reader(self) -> Any:
        return self._open().with_format("numpy") if self.kind == "T" else self._open()

    def epoch(self, *, shuffled: bool) -> Iterable[Batch]:
        dataset = self._open()
        if shuffled:
            dataset = dataset.shuffle(seed=SEED, keep_in_memory=True)
        # The NumPy format of `datasets` would convert all integers to int64.
        return map(from_arrow, dataset.with_format("arrow").iter(batch_size=BATCH))


class Lance(Adapter):
    package, module = "pylance", "lance"
    shuffle = "all samples, by `take`"

    def write(self) -> None:
        import lance
        import pyarrow as pa

        fields = {"id": pa.int64()}
        if self.kind == "T":
            fields["tokens"] = pa.list_(pa.uint16(), TOKENS)
        else:
            fields |= {"label": pa.int32(), "text": pa.string()}
        schema = pa.schema(fields)

        def column(values: Any, kind: Any) -> Any:
            if pa.types.is_fixed_size_list(kind):
                flat = pa.array(values.reshape(-1))
                return pa.FixedSizeListArray.from_arrays(flat, kind.list_size)
            return pa.array(values, kind)

        def record_batches() -> Iterator[Any]:
            for batch in in_batches(iter(self.samples), 1024):
                columns = [column(batch[field.name], field.type) for field in schema]
                yield pa.record_batch(columns, schema)

        lance.write_dataset(record_batches(), self.path, schema=schema)

    def epoch(self, *, shuffled: bool) -> Iterable[Batch]:
        import lance

        dataset = lance.dataset(self.path)
        if not shuffled:
            yield from map(from_arrow, dataset.to_batches(batch_size=BATCH))
            return
        order = np.random.default_rng(SEED).permutation(self.samples.count)
        for start in range(0, len(order), BATCH):
            yield from_arrow(dataset.take(order[start : start + BATCH]))

    def reader(self) -> Any:
        import lance

        return LanceSamples(lance.dataset(self.path))


class Zarr(Adapter):
    """An array for each column, in shards of 8,192 samples and chunks of 32."""

    package = module = "zarr"
    shuffle = "all samples, by `oindex`"
    chunk: ClassVar[int] = 32
    """Samples of a chunk."""
    shard: ClassVar[int] = 8192
    """Samples of a shard."""

    def write(self) -> None:
        import zarr

        group = zarr.create_group(self.path)
        count = self.samples.count
        dtypes = {"id": "int64", "tokens": "uint16", "label": "int32", "text": "str"}
        start = 0
        # Write whole shards: to write a part of a shard, Zarr would read it and write it again.
        for batch in in_batches(iter(self.samples), self.shard):
            for name, values in batch.items():
                array = np.asarray(values)
                if not start:
                    rest = array.shape[1:]
                    group.create_array(
                        name,
                        shape=(count, *rest),
                        dtype=dtypes[name],
                        chunks=(self.chunk, *rest),
                        shards=(self.shard, *rest),
                        compressors=None,
                    )
                group[name][start : start + len(array)] = array
            start += len(batch["id"])

    def _arrays(self) -> dict[str, Any]:
        import zarr

        return dict(zarr.open_group(self.path, mode="r").arrays())

    def _convert(self, batch: Batch) -> Batch:
        if self.kind == "S":
            batch["text"] = batch["text"].tolist()
        return batch

    def epoch(self, *, shuffled: bool) -> Iterable[Batch]:
        arrays, count = self._arrays(), self.samples.count
        order = np.random.default_rng(SEED).permutation(count) if shuffled else None
        for start in range(0, count, BATCH):
            rows = slice(start, min(start + BATCH, count))
            if order is None:
                batch = {name: array[rows] for name, array in arrays.items()}
            else:
                batch = {name: array.oindex[order[rows]] for name, array in arrays.items()}
            yield self._convert(batch)

    def reader(self) -> Any:
        return ZarrSamples(self._arrays())


class LanceSamples:
    """Single samples of a dataset of Lance."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, row: int) -> Sample:
        sample: Sample = self.dataset.take([row]).to_pylist()[0]
        return sample


class ZarrSamples:
    """Single samples of arrays of Zarr."""

    def __init__(self, arrays: dict[str, Any]) -> None:
        self.arrays = arrays

    def __getitem__(self, row: int) -> Sample:
        return {name: array[row] for name, array in self.arrays.items()}


class OnlyFirst:
    """The first sample of a stream, for packages without random access."""

    def __init__(self, samples: Iterator[Sample]) -> None:
        self.samples = samples

    def __getitem__(self, row: int) -> Sample:
        assert row == 0, row
        return next(self.samples)


def from_arrow(table: Any) -> Batch:
    """Make a batch of a table or record batch of Arrow."""
    batch: Batch = {}
    for name in table.schema.names:
        column = table[name]
        if name == "text":
            batch[name] = column.to_pylist()
        elif name == "tokens":
            chunks = getattr(column, "chunks", [column])
            flat = [chunk.flatten().to_numpy() for chunk in chunks]
            tokens = flat[0] if len(flat) == 1 else np.concatenate(flat)
            batch[name] = tokens.reshape(-1, TOKENS)
        else:
            batch[name] = column.to_numpy()
    return batch


def in_batches(samples: Iterator[Sample], count: int = BATCH) -> Iterator[Batch]:
    """Yield batches of consecutive samples; the last one may be shorter."""
    part: list[Sample] = []
    for sample in samples:
        part.append(sample)
        if len(part) == count:
            yield stack(part)
            part = []
    if part:
        yield stack(part)


ADAPTERS: dict[str, type[Adapter]] = {
    "npstream": Npstream,
    "streaming": Streaming,
    "litdata": LitData,
    "webdataset": WebDataset,
    "grain": Grain,
    "datasets": HuggingFace,
    "lance": Lance,
    "zarr": Zarr,
}

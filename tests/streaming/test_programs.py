"""Programs like those in Streaming's documentation run with npstream.

The pattern of the `sed` command on the migration page changes their imports. The programs have
less data than those of the documentation. They use local directories or a store in memory instead
of a cloud.
"""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import fsspec
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "streaming.md"

# The comment above each program names the pages of Streaming's documentation that it follows.
PROGRAMS = {
    # README, quick start
    "images": """
        import numpy as np
        from PIL import Image
        from streaming import MDSWriter

        columns = {"image": "jpeg", "class": "int"}
        with MDSWriter(out="memory://bucket/images", columns=columns, compression="zstd") as out:
            for i in range(40):
                pixels = np.random.randint(0, 256, (32, 32, 3), np.uint8)
                out.write({"image": Image.fromarray(pixels), "class": np.random.randint(10)})

        from torch.utils.data import DataLoader
        from streaming import StreamingDataset

        dataset = StreamingDataset(local="cache", remote="memory://bucket/images", shuffle=True)
        sample = dataset[13]
        assert sample["image"].size == (32, 32) and 0 <= sample["class"] < 10
        loader = DataLoader(dataset)
    """,
    # quick start, main concepts
    "training": """
        from uuid import uuid4
        import numpy as np
        from streaming import MDSWriter, StreamingDataset
        from torch.utils.data import DataLoader

        columns = {"uuid": "str", "img": "ndarray:uint8:4,4", "clf": "int"}
        with MDSWriter(out="out", columns=columns, compression="zstd:7") as out:
            for i in range(50):
                image = np.random.randint(0, 256, (4, 4), np.uint8)
                out.write({"uuid": str(uuid4()), "img": image, "clf": i % 10})
        dataset = StreamingDataset(local="out", batch_size=5, split=None, shuffle=True)
        classes = [batch["clf"] for batch in DataLoader(dataset, batch_size=5)]
        assert len(classes) == 10 and sum(int(c.sum()) for c in classes) == 225
    """,
    # README, seamless data mixing; mixing data sources
    "mixing": """
        from streaming import MDSWriter, Stream, StreamingDataset

        for name, count in [("c4", 100), ("github", 200)]:
            with MDSWriter(out=f"memory://bucket/{name}", columns={"x": "int"}) as out:
                for x in range(count):
                    out.write({"x": x})

        def streams(**weights):
            return [
                Stream(remote=f"memory://bucket/{name}", local=f"cache/{name}", **weights)
                for name in ("c4", "github")
            ]

        first, second = streams()
        assert StreamingDataset(streams=[first, second]).epoch_size == 300
        dataset = StreamingDataset(
            streams=[
                Stream(remote="memory://bucket/c4", local="cache/c4", proportion=0.25),
                Stream(remote="memory://bucket/github", local="cache/github", proportion=0.75),
            ]
        )
        assert [stream.choose for stream in dataset.streams] == [75, 225]
        dataset = StreamingDataset(streams=streams(proportion=0.5), epoch_size=400)
        assert [stream.choose for stream in dataset.streams] == [200, 200]
        assert StreamingDataset(streams=streams(repeat=3)).epoch_size == 900
        assert StreamingDataset(streams=streams(choose=250)).epoch_size == 500
        for method in ("random", "stratified", "per_stream", "device_per_stream"):
            dataset = StreamingDataset(
                streams=streams(), batch_size=10, batching_method=method, shuffle=True
            )
            # "stratified" leaves out samples that fill no batch with both streams.
            assert 250 <= len(list(dataset)) <= 300
    """,
    # README, random access; no divisibility; disk usage limits
    "access": """
        import numpy as np
        from streaming import MDSWriter, StreamingDataset

        with MDSWriter(out="memory://bucket/a", columns={"x": "int"}, size_limit="1kb") as out:
            for x in range(117):
                out.write({"x": x})
        dataset = StreamingDataset(remote="memory://bucket/a", local="cache", cache_limit="100kb")
        assert dataset[0]["x"] == 0 and dataset[-1]["x"] == 116
        assert [sample["x"] for sample in dataset[10:13]] == [10, 11, 12]
        assert [s["x"] for s in dataset[np.array([5, 7])]] == [5, 7]
        assert len(dataset) == 117
    """,
    # Fast resumption
    "resumption": """
        import numpy as np
        from streaming import MDSWriter, StreamingDataLoader, StreamingDataset

        with MDSWriter(out="path", columns={"x": "float32", "y": "int"}) as out:
            for i in range(20):
                out.write({"x": np.float32(i), "y": i})
        dataset = StreamingDataset(local="cache", remote="path", batch_size=1)
        dataloader = StreamingDataLoader(dataset, batch_size=1)
        for i, batch in enumerate(dataloader):
            if i == 4:
                state_dict = dataloader.state_dict()
            if i == 6:
                break
        dataset_2 = StreamingDataset(local="cache", remote="path", batch_size=1)
        dataloader_2 = StreamingDataLoader(dataset_2, batch_size=1)
        dataloader_2.load_state_dict(state_dict)
        assert [int(batch["y"]) for batch in dataloader_2] == list(range(5, 20))
    """,
    # Basic dataset conversion; dataset format
    "formats": """
        from streaming import CSVWriter, JSONWriter, LocalDataset, MDSWriter, TSVWriter, XSVWriter

        samples = [{"number": i, "words": f"sample {i}", "share": i / 7} for i in range(30)]
        types = {"number": "int", "words": "str", "share": "float"}
        settings = {"compression": "zstd:9", "hashes": ["sha256", "xxh64"], "size_limit": "1kb"}
        writers = {
            "json": (JSONWriter, {}), "csv": (CSVWriter, {}), "tsv": (TSVWriter, {}),
            "xsv": (XSVWriter, {"separator": "|"}),
        }
        for name, (writer, arguments) in writers.items():
            with writer(out=name, columns=types, **arguments, **settings) as out:
                for sample in samples:
                    out.write(sample)
            assert LocalDataset(name)[:] == samples
        with MDSWriter(columns={**types, "share": "float64"}, out="mds", **settings) as out:
            for sample in samples:
                out.write(sample)
        assert [sample["words"] for sample in LocalDataset("mds")] == [s["words"] for s in samples]
    """,
    # Basic dataset conversion: a user-defined encoding
    "encoding": """
        from typing import Any
        import numpy as np
        from streaming import LocalDataset, MDSWriter, StreamingDataset
        from streaming.base.format.mds.encodings import Encoding, _encodings

        class Complex128(Encoding):
            def encode(self, obj: Any) -> bytes:
                return np.complex128(obj).tobytes()

            def decode(self, data: bytes) -> Any:
                return np.frombuffer(data, np.complex128)[0]

        _encodings["complex128"] = Complex128
        with MDSWriter(out="numbers", columns={"z": "complex128"}) as out:
            for i in range(20):
                out.write({"z": i + 2j})
        assert [sample["z"] for sample in LocalDataset("numbers")] == [i + 2j for i in range(20)]
        dataset = StreamingDataset(local="numbers", batch_size=4)
        assert [sample["z"] for sample in dataset] == [i + 2j for i in range(20)]
        del _encodings["complex128"]
    """,
    # Parallel dataset conversion
    "parallel": """
        import os
        from streaming.base.util import merge_index
        from streaming import MDSWriter, StreamingDataset

        def convert(part):
            with MDSWriter(out=os.path.join("root", f"{part:05}"), columns={"x": "int"}) as out:
                for x in range(10 * part, 10 * part + 10):
                    out.write({"x": x})

        for part in range(4):
            convert(part)
        merge_index("root", keep_local=True)
        dataset = StreamingDataset(local="root", batch_size=1)
        assert [sample["x"] for sample in dataset] == list(range(40))
    """,
    # Shard retrieval; shuffling; replication and sampling; elastic determinism
    "settings": """
        from streaming import MDSWriter, StreamingDataset
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()
        for split in ("train", "val"):
            out = ("unused", f"memory://bucket/data/{split}")
            with MDSWriter(out=out, columns={"x": "int"}, hashes=["sha1"]) as writer:
                for x in range(64):
                    writer.write({"x": x})
        for algo in ("py1e", "py1br", "py1s", "py2s", "naive"):
            dataset = StreamingDataset(
                remote="memory://bucket/data", local="cache", split="train", shuffle=True,
                shuffle_algo=algo, shuffle_seed=17, shuffle_block_size=100, batch_size=4,
                num_canonical_nodes=2, predownload=8, validate_hash="sha1", download_retry=3,
                download_timeout=120, keep_zip=False, epoch_size=32, sampling_method="fixed",
                sampling_granularity=4, partition_algo="relaxed", replication=1,
                cache_limit="1gb", allow_unsafe_types=False,
            )
            first, second = ([sample["x"] for sample in dataset] for _ in range(2))
            assert len(first) == 32 and sorted(first) == sorted(second)
    """,
    # CIFAR10 and synthetic NLP guides
    "subclass": """
        from typing import Any, Callable
        import numpy as np
        from streaming import MDSWriter, StreamingDataset
        from torch.utils.data import DataLoader

        with MDSWriter(out="train", columns={"x": "bytes", "y": "int"}) as out:
            for i in range(32):
                out.write({"x": bytes([i] * 3), "y": i})

        class Pictures(StreamingDataset):
            def __init__(self, remote: str, local: str, shuffle: bool, batch_size: int,
                         transforms: Callable) -> None:
                super().__init__(local=local, remote=remote, shuffle=shuffle, batch_size=batch_size)
                self.transforms = transforms

            def __getitem__(self, idx: int) -> Any:
                obj = super().__getitem__(idx)
                return self.transforms(np.frombuffer(obj["x"], np.uint8).copy()), obj["y"]

        dataset = Pictures("train", "cache", True, 8, lambda x: x + 1)
        batches = list(DataLoader(dataset, batch_size=8, num_workers=1, drop_last=True))
        assert all((x[:, 0] == y + 1).all() for x, y in batches) and len(batches) == 4
    """,
}


@pytest.fixture(autouse=True)
def _empty_store():
    fsspec.filesystem("memory").store.clear()
    yield
    fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    match = re.search(r"sed -i -E 's/(.*)/\\1 npstream\.streaming/'", PAGE.read_text())
    pattern = match[1]
    lines = [line.removeprefix("        ") for line in PROGRAMS[name].splitlines()]
    program = re.sub(pattern, r"\1 npstream.streaming", "\n".join(lines))
    (tmp_path / "program.py").write_text(program)
    runpy.run_path(str(tmp_path / "program.py"), run_name="__main__")

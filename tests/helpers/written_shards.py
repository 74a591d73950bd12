"""A second reader of MDS datasets, and comparisons of datasets.

Of npstream, the reader uses only the encodings, hashes and decompression.
"""

from __future__ import annotations

import itertools
import json
import os
import struct
from pathlib import Path

from npstream.formats.compression import decompress
from npstream.formats.encodings.encodings import parse
from npstream.formats.hashes import digest


def load_index(root):
    text = (Path(root) / "index.json").read_text("ascii")
    return json.loads(text)


def read_described(root, entry, facts):
    """Return the content of a file, after comparing its size and hashes with the index."""
    data = Path(root, facts["basename"]).read_bytes()
    assert_described(data, entry, facts)
    return data


def assert_described(data, entry, facts):
    assert len(data) == facts["bytes"]
    assert {name: digest(name, data) for name in entry["hashes"]} == facts["hashes"]


def shard_bytes(root, entry):
    """Return the uncompressed bytes of a shard."""
    raw, packed = entry["raw_data"], entry["zip_data"]
    if packed is None or not Path(root, packed["basename"]).exists():
        return read_described(root, entry, raw)
    data = decompress(read_described(root, entry, packed), entry["compression"], raw["bytes"])
    assert_described(data, entry, raw)
    return data


def read(root):
    """Return the samples of a dataset, decoded according to the specification of the format."""
    samples = []
    for entry in load_index(root)["shards"]:
        data = shard_bytes(root, entry)
        (count,) = struct.unpack_from("<I", data)
        ends = struct.unpack_from(f"<{count + 1}I", data, 4)
        assert count == entry["samples"]
        assert ends[-1] == len(data)
        for begin, end in itertools.pairwise(ends):
            samples.append(decode(entry, data[begin:end]))
    return samples


def decode(entry, data):
    sizes = list(entry["column_sizes"])
    position = 4 * sizes.count(None)
    varying = iter(struct.unpack_from(f"<{sizes.count(None)}I", data))
    decoded = {}
    for name, encoding, size in zip(
        entry["column_names"], entry["column_encodings"], sizes, strict=True
    ):
        end = position + (next(varying) if size is None else size)
        decoded[name] = parse(encoding).decode(data[position:end])
        position = end
    assert position == len(data)
    return decoded


def without_zip_sizes(index):
    """Remove the sizes and hashes of compressed files from an index, and return the index."""
    for entry in index["shards"]:
        if entry["zip_data"]:
            entry["zip_data"] |= {"bytes": None, "hashes": None}
    return index


def without_annotations(text):
    """Return an index as Streaming writes it: without the annotations."""
    index = json.loads(text)
    index.pop("npstream", None)
    return json.dumps(index, sort_keys=True).encode()


def streaming_files(path):
    """Return the names of the files that Streaming also writes: all except the side-car's."""
    names = sorted(os.listdir(path))
    return [name for name in names if name not in ("index.columns", "index.msgpack")]


def assert_same_dataset(written, golden, exactness):
    """Assert that a dataset equals the golden one: its files, or their uncompressed content."""
    roots = written, golden
    if exactness == "files":
        names = streaming_files(golden)
        assert streaming_files(written) == names
        for name in names:
            contents = [(root / name).read_bytes() for root in roots]
            if name == "index.json":
                contents = [without_annotations(content) for content in contents]
            assert contents[0] == contents[1], name
    else:
        written_index, golden_index = (load_index(root) for root in roots)
        written_index.pop("npstream", None)
        for entries in zip(written_index["shards"], golden_index["shards"], strict=True):
            assert shard_bytes(written, entries[0]) == shard_bytes(golden, entries[1])
        files = [entry["zip_data"] or entry["raw_data"] for entry in written_index["shards"]]
        names = {"index.json", *(facts["basename"] for facts in files)}
        assert set(streaming_files(written)) == names
        assert without_zip_sizes(written_index) == without_zip_sizes(golden_index)

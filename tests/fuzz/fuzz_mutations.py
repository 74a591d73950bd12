"""Mutations: random damage to the files of a dataset, for `fuzz`."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import msgpack

from npstream.formats.sidecar.blocks import block_hashes, xxh3

Files = dict[str, bytes]
"""Relative path -> content of a file."""

WORDS = (0, 1, 3, 4, 8, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 8, 2**32 - 4, 2**32 - 1)

HOSTILE: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        255,
        2**31,
        2**32 - 1,
        2**32,
        2**40 - 1,
        2**62,
        2**63,
        10**30,
    ),
    *(1.0, 1.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "x", ".", "..", "../index.json", "/etc/passwd", "a/../../b", "C:x", "a\\b", "a\0b"),
    *("s3://bucket/key", "index.json", "\ud800", "x" * 5000, "zstd", "gz", "br:99", "mds", "json"),
    *("int", "str", "bytes", "int32", "uint32", "float32", "float64", "uint8", "ndarray", "json"),
    *("ndarray:uint8", "ndarray:uint16:2", "ndarray:float64:4294967295,4294967295", "pkl", "png"),
    *([], [1], [[]], {}, {"a": 1}, {"basename": "x", "bytes": 1, "hashes": {}}),
)

Change = Callable[[random.Random, bytes], bytes]


def mutate(rng: random.Random, files: Files, compressed: set[str]) -> tuple[Files, str]:
    """Damage one or two files; return the changed files, and a description."""
    changed: Files = {}
    done: list[str] = []
    count = 1 if rng.random() < 0.85 else 2
    # Never damage index and shard together: only the shard can contradict a plausible index.
    names = ["index.json"] if rng.random() < 0.4 else sorted(files.keys() - {"index.json"})
    while len(done) < count:
        name = rng.choice(names)
        content = changed.get(name, files[name])
        if name == "index.json":
            change = rng.choice(INDEX_CHANGES)
        elif name in compressed:
            change = rng.choice(BLOB_CHANGES)
        else:
            change = rng.choice(SHARD_CHANGES)
        new = change(rng, content)
        if new not in (content, files[name]):
            changed[name] = new
            done.append(f"{change.__name__} {name}")
    return changed, "; ".join(done)


# Any file


def flip_bits(rng: random.Random, content: bytes) -> bytes:
    """Flip one to three bits, half the time near the start."""
    new = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3)) if new else 0):
        reach = len(new) if rng.random() < 0.5 else min(len(new), 400)
        new[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    return bytes(new)


def set_bytes(rng: random.Random, content: bytes) -> bytes:
    """Overwrite a short range with zeros, ones or random bytes."""
    new = bytearray(content)
    at, length = rng.randrange(len(new) + 1), rng.randint(1, 16)
    fill = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))
    new[at : at + length] = fill[: len(new[at : at + length])]
    return bytes(new)


def truncate(rng: random.Random, content: bytes) -> bytes:
    """Remove the end."""
    return content[: rng.choice((0, len(content) - 1, rng.randrange(len(content) + 1)))]


def extend(rng: random.Random, content: bytes) -> bytes:
    """Append bytes."""
    more = rng.randint(1, 40)
    return content + rng.choice((bytes(more), rng.randbytes(more), content[-more:], content))


def swap_ranges(rng: random.Random, content: bytes) -> bytes:
    """Swap two ranges of equal length."""
    length = min(rng.choice((1, 2, 4, 8, 16, 64)), len(content) // 2)
    first = rng.randint(0, len(content) - 2 * length)
    second = rng.randint(first + length, len(content) - length)
    new = bytearray(content)
    new[first : first + length] = content[second : second + length]
    new[second : second + length] = content[first : first + length]
    return bytes(new)


def copy_range(rng: random.Random, content: bytes) -> bytes:
    """Copy one range over another."""
    length = min(rng.choice((1, 4, 8, 16, 64)), len(content))
    source, target = (rng.randint(0, len(content) - length) for _ in "12")
    new = bytearray(content)
    new[target : target + length] = content[source : source + length]
    return bytes(new)


def shift(rng: random.Random, content: bytes) -> bytes:
    """Remove some bytes, and insert the same number at another position."""
    length = min(rng.choice((1, 2, 4, 8)), len(content))
    at = rng.randint(0, len(content) - length)
    rest = content[:at] + content[at + length :]
    to = rng.randint(0, len(rest))
    return rest[:to] + rng.choice((bytes(length), rng.randbytes(length))) + rest[to:]


# Heads of shards and samples, which are tables of words


def _words(content: bytes) -> list[int]:
    return list(struct.unpack_from(f"<{len(content) // 4}I", content))


def _table(rng: random.Random, content: bytes) -> list[int]:
    """Return the positions of the words in the offsets table, if the count is plausible."""
    words = len(content) // 4
    count = struct.unpack_from("<I", content)[0] + 2 if words else 0
    return list(range(min(words, count)))


def set_offset(rng: random.Random, content: bytes) -> bytes:
    """Overwrite the count or an offset with a nearly correct or an extreme value."""
    table, words = _table(rng, content), _words(content)
    if not table:
        return content
    k = rng.choice((0, 1, table[-1], rng.choice(table)))
    old = words[k] if k < len(words) else 0
    near = [old + d for d in (-8, -4, -1, 1, 4, 8)]
    values = (*near, words[rng.choice(table)], len(content), rng.choice(WORDS), rng.getrandbits(32))
    new = bytearray(content)
    struct.pack_into("<I", new, 4 * k, rng.choice(values) % 2**32)
    return bytes(new)


def move_offsets(rng: random.Random, content: bytes) -> bytes:
    """Swap two offsets, or copy consecutive offsets over others."""
    table = _table(rng, content)
    if len(table) < 4:
        return content
    new = bytearray(content)
    length = 4 * min(rng.choice((1, 1, 2, 3, 10)), len(table) - 2)
    a, b = (4 * rng.randint(1, len(table) - length // 4) for _ in "12")
    new[a : a + length] = content[b : b + length]
    if rng.random() < 0.5:
        new[b : b + length] = content[a : a + length]
    return bytes(new)


def set_sizes(rng: random.Random, content: bytes) -> bytes:
    """Change the sizes at the start of a sample; often keep their sum."""
    table, words = _table(rng, content), _words(content)
    if len(table) < 3:
        return content
    at = words[rng.choice(table[1:-1])]
    if at + 8 > len(content):
        return content
    first, second = struct.unpack_from("<2I", content, at)
    d = rng.choice((-4, -1, 1, 4))
    pairs = (
        *((first + d, second), (first, second + d), (first + d, second - d), (second, first)),
        *((rng.choice(WORDS), second), (first - 1, rng.choice(WORDS)), (first + 2**31, second)),
    )
    new = bytearray(content)
    struct.pack_into("<2I", new, at, *(word % 2**32 for word in rng.choice(pairs)))
    return bytes(new)


def empty(rng: random.Random, content: bytes) -> bytes:
    """Return an empty file."""
    return b""


BLOB_CHANGES: tuple[Change, ...] = (
    *(flip_bits, flip_bits, set_bytes, truncate, extend, swap_ranges, copy_range, shift, empty),
)
SHARD_CHANGES: tuple[Change, ...] = (
    *BLOB_CHANGES,
    *(set_offset, set_offset, set_offset, move_offsets, move_offsets, set_sizes, set_sizes),
)


# The index


def _paths(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all nodes below the top of a JSON document."""
    keys: list[Any] = []
    if len(path) > 40:
        return []
    if isinstance(node, dict):
        keys = list(node)
    elif isinstance(node, list):
        keys = list(range(len(node)))
    paths = [(*path, key) for key in keys]
    return paths + [deeper for key in keys for deeper in _paths(node[key], (*path, key))]


def _edit_index(
    rng: random.Random, content: bytes, edit: Callable[[Any, Any, list[Any]], None]
) -> bytes:
    """Change a random node of an index; `edit` gets its container, its key, and all values."""
    try:
        document = json.loads(content)
        paths = _paths(document)
        values = [_value_at(document, path) for path in paths]
        path = rng.choice(paths)
        edit(_value_at(document, path[:-1]), path[-1], values)
        return json.dumps(document).encode()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return content  # the node does not exist


def _value_at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def edit_value(rng: random.Random, content: bytes) -> bytes:
    """Replace a random node by a hostile value."""

    def edit(parent: Any, key: Any, values: list[Any]) -> None:
        parent[key] = copy.deepcopy(rng.choice(HOSTILE))

    return _edit_index(rng, content, edit)


def edit_number(rng: random.Random, content: bytes) -> bytes:
    """Change a number slightly, or replace a node by another one of the same type."""

    def edit(parent: Any, key: Any, values: list[Any]) -> None:
        old = parent[key]
        alike = [value for value in values if type(value) is type(old)]
        parent[key] = copy.deepcopy(rng.choice(alike))
        if type(old) is int and rng.random() < 0.5:
            parent[key] = rng.choice((old - 1, old + 1, 2 * old, -old, old // 2, old << 20))

    return _edit_index(rng, content, edit)


def edit_keys(rng: random.Random, content: bytes) -> bytes:
    """Remove a key or an item, duplicate an item, or swap two items."""

    def edit(parent: Any, key: Any, values: list[Any]) -> None:
        if isinstance(parent, list):
            other = rng.randrange(len(parent))
            match rng.choice(("drop", "double", "swap")):
                case "drop":
                    del parent[key]
                case "double":
                    parent.insert(other, copy.deepcopy(parent[key]))
                case _:
                    parent[key], parent[other] = parent[other], parent[key]
        elif rng.random() < 0.5:
            del parent[key]
        else:
            parent[rng.choice(["x", *parent])] = parent[key]

    return _edit_index(rng, content, edit)


def edit_shard(rng: random.Random, content: bytes) -> bytes:
    """Change the columns, counts or files of an entry to other plausible values."""

    def edit(parent: Any, key: Any, values: list[Any]) -> None:
        shard = rng.choice(values[0] if isinstance(values[0], list) else values[1])
        other = rng.choice(values[0] if isinstance(values[0], list) else values[1])
        match rng.randrange(6):
            case 0:
                shard["samples"] = rng.choice((2**31, 2**32 - 1, shard["samples"] * 1000))
                for name in ("raw_data", "raw_meta"):
                    if shard.get(name):
                        shard[name]["bytes"] = rng.choice((2**39, 20 * shard["samples"]))
            case 1:
                encodings = shard["column_encodings"]
                encodings[rng.randrange(len(encodings))] = rng.choice(HOSTILE)
            case 2:
                order = list(range(len(shard["column_names"])))
                rng.shuffle(order)
                for name in ("column_names", "column_encodings", "column_sizes"):
                    if name in shard:
                        shard[name] = [shard[name][k] for k in order]
            case 3:
                rng.shuffle(shard["column_names"])
            case 4:
                name = rng.choice(("raw_data", "zip_data", "raw_meta", "zip_meta"))
                shard[name], other[name] = other[name], shard[name]
            case _:
                twins = {"float32": "int32", "int": "float64", "int64": "int", "str": "bytes"}
                for k, encoding in enumerate(shard["column_encodings"]):
                    shard["column_encodings"][k] = twins.get(encoding, encoding)

    return _edit_index(rng, content, edit)


def change_digit(rng: random.Random, content: bytes) -> bytes:
    """Replace a digit by another one."""
    positions = [k for k, byte in enumerate(content) if chr(byte).isdigit()]
    if not positions:
        return content
    new = bytearray(content)
    new[rng.choice(positions)] = ord(rng.choice("0123456789"))
    return bytes(new)


def reencode(rng: random.Random, content: bytes) -> bytes:
    """Encode the text differently, or add text before or after it."""
    return rng.choice((
        b"\xef\xbb\xbf" + content,
        content.decode("latin-1").encode("utf-16"),
        b"[" * 100_000 + content,
        b'{"shards":' * 1000,
        content + content,
        content + b"\0",
        b" \n" + content + b"\n",
        b" " * 10_000_000,
        content.replace(b":", b":" + b"[" * 900 + b"]" * 900 + b",", 1),
        b'{"version": 2, "shards": [], "npstream": ' + b"[" * 900 + b"]" * 900 + b"}",
        content.replace(b"null", b"[" * 900 + b"]" * 900, 1),
        content.replace(b"null", b"NaN", 1),
        content.replace(b"null", b"Infinity", 1),
        content.replace(b"null", b"-1e999", 1),
        content.replace(b'"', b'"\xff', 1),
        content.replace(b"{", b'{"version": 2, "shards": [], ', 1),
        content.replace(b'"raw_data": {', b'"raw_data": {"bytes": 1, ', 1),
        b"",
        b"null",
        b'{"shards": [], "version": 2}',
        b"9" * 10_000,
    ))  # fmt: skip


INDEX_CHANGES: tuple[Change, ...] = (
    *(edit_value, edit_value, edit_number, edit_number, edit_keys, edit_keys),
    *(edit_shard, edit_shard, edit_shard, change_digit, change_digit),
    *(flip_bits, flip_bits, set_bytes, truncate, swap_ranges, copy_range, shift, reencode),
)


# The side-car


def edit_sidecar_table(rng: random.Random, content: bytes) -> bytes:
    """Change an entry of a side-car's table, and update the hash."""
    table, arrays = _split_sidecar(content)
    paths = _paths(table)
    path = rng.choice(paths)
    values = [_value_at(table, place) for place in paths]
    old = values[paths.index(path)]
    alike = [value for value in values if type(value) is type(old)]
    new = rng.choice((rng.choice(HOSTILE_MSGPACK), rng.choice(alike), None))
    if new is None and type(old) is int:
        new = rng.choice((old - 1, old + 1, 2 * old, -old, old // 2, old << 40))
    parent = _value_at(table, path[:-1])
    if rng.random() < 0.15:
        del parent[path[-1]]
    elif isinstance(parent, dict) and rng.random() < 0.1:
        parent[rng.choice(("x", *parent))] = parent[path[-1]]
    else:
        parent[path[-1]] = copy.deepcopy(new)
    return _with_table(table, arrays)


def edit_sidecar_array(rng: random.Random, content: bytes) -> bytes:
    """Change numbers in an array of a side-car, and update the hashes."""
    table, arrays = _split_sidecar(content)
    section = rng.choice(table["sections"])
    _, dtype, count, offset, _ = section
    size = int(dtype[2:])
    if not count:
        return content
    body = bytearray(arrays)
    for _ in range(rng.choice((1, 1, 1, count))):
        at = offset + size * rng.randrange(count)
        other = offset + size * rng.randrange(count)
        values = (bytes(size), b"\xff" * size, rng.randbytes(size), arrays[other : other + size])
        near = (int.from_bytes(body[at : at + size], "little") + rng.choice((-1, 1))) % 256**size
        body[at : at + size] = rng.choice((*values, near.to_bytes(size, "little")))
    hashes = block_hashes(bytes(body[offset : offset + count * size]))
    section[4] = hashes.astype("<u8").tobytes()
    return _with_table(table, bytes(body))


def replace_sidecar_table(rng: random.Random, content: bytes) -> bytes:
    """Replace the table of a side-car, and update the hash."""
    _, arrays = _split_sidecar(content)
    table = rng.choice((
        b"\x91" * 400 + b"\xc0",
        b"\x91" * 100_000 + b"\xc0",
        b"\x81\xa1a" * 400 + b"\xc0",
        b"\xdd\xff\xff\xff\xff" + b"\xc0",
        b"\xdf\xff\xff\xff\xff" + b"\xc0",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\x82\xa1a\x01\xa1a\x02",
        b"\x81\xa1\xff\x01",
        b"\x81\x01\x02",
        b"\x81\x91\x01\x02",
        b"\x81\xa5index\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00",
        b"\xc1",
        b"\x80",
        b"",
    ))  # fmt: skip
    return _with_packed_table(table, arrays)


HOSTILE_MSGPACK: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 255, 256, 2**31, 2**32, 2**40, 2**60, 2**63 - 1, 2**64 - 1),
    *(1.5, float("nan"), float("inf"), "", "x", "..", "../x", "\0", "x" * 5000, b"", b"\xff" * 8),
    *("<u8", "|u1", "<f8", "<U1000000000", "|V2147483647", "O", "mds", "json", "xsv", "zstd"),
    *("index.columns/../../x.npy", "index.columns/x.npy", "uint8", "ndarray:uint8:4294967295"),
    *([], [1], [[]], {}, {"a": 1}, ["mds", ["x"], ["int"], [8], "", ""], ["x", "<u8", "y"]),
)

_HEAD = struct.Struct("<2s8sHIQQ")


def _split_sidecar(content: bytes) -> tuple[Any, bytes]:
    """Return the table of a side-car, and the bytes of the arrays after it."""
    length = _HEAD.unpack_from(content)[3]
    table = msgpack.unpackb(content[_HEAD.size : _HEAD.size + length])
    return table, content[-(-(_HEAD.size + length) // 64) * 64 :]


def _with_table(table: Any, arrays: bytes) -> bytes:
    return _with_packed_table(msgpack.packb(table), arrays)


def _with_packed_table(table: bytes, arrays: bytes) -> bytes:
    start = -(-(_HEAD.size + len(table)) // 64) * 64
    head = _HEAD.pack(b"\xc4\x1e", b"npstream", 1, len(table), start + len(arrays), xxh3(table))
    return (head + table).ljust(start, b"\xc0") + arrays


SIDECAR_CHANGES: tuple[Change, ...] = (
    edit_sidecar_table,
    edit_sidecar_table,
    edit_sidecar_table,
    edit_sidecar_array,
    replace_sidecar_table,
)


# States


def edit_state(rng: random.Random, state: dict[str, Any]) -> dict[str, Any]:
    """Replace a random node of a state by a hostile or nearly correct value, or remove it."""
    for _ in range(9):
        new = json.loads(json.dumps(state))
        paths = _paths(new)
        path = rng.choice(paths)
        parent, old = _value_at(new, path[:-1]), _value_at(new, path)
        alike = [value for value in map(partial(_value_at, new), paths) if type(value) is type(old)]
        wild = (rng.choice(HOSTILE), rng.choice(alike), [[0, 1], [1, 0]], [[-1, 2**70]])
        value = json.loads(json.dumps(rng.choice(wild)))
        if rng.random() < 0.05:
            value = _nested(900)
        if type(old) is int and rng.random() < 0.6:
            value = rng.choice((old - 1, old + 1, 2 * old, -old, old // 2, old << 40, old + 2**64))
        if rng.random() < 0.15:
            del parent[path[-1]]
        else:
            parent[path[-1]] = value
        if new != state:
            break
    return new


def _nested(depth: int) -> list[Any]:
    """Return nested lists, for which `repr` exceeds the recursion limit."""
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    return nested

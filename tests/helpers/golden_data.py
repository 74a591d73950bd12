"""Golden data: datasets that Streaming wrote, and the values that it read.

``golden/README.md`` describes the files. A *tagged* value is the JSON form of a Python value.
`value` decodes a tagged value. `assert_same` compares any value exactly with a tagged one.
"""

from __future__ import annotations

import atexit
import base64
import decimal
import functools
import hashlib
import io
import json
import pickle
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FORMATS = Path(__file__).parents[1] / "golden" / "formats"

Tagged = dict[str, Any]
Case = dict[str, Any]


@functools.cache
def units() -> dict[str, Any]:
    """Return the tables for unit tests; see the golden README, section 2."""
    return _load("units.json")


@functools.cache
def cases() -> list[Case]:
    """Return the description of every dataset, in the order of ``cases.json``."""
    return list(_load("cases.json")["cases"])


def case(name: str) -> Case:
    """Return one dataset's description."""
    return next(case for case in cases() if case["name"] == name)


def directory(case: Case) -> Path:
    """Return the directory that holds a dataset's ``index.json``."""
    return FORMATS / str(case["dir"]) / str(case["split"] or "")


def inputs(case: Case) -> dict[str, Any]:
    """Return the writer's input: ``samples``, or ``partitions`` of a merged case."""
    return _load(case["inputs"])


def expected(case: Case) -> list[dict[str, Tagged]]:
    """Return the samples that a reader must yield, as dicts of tagged values."""
    return list(_load(case["expected"])["samples"])


def _load(name: str) -> dict[str, Any]:
    return dict(json.loads((FORMATS / name).read_text("utf-8")))


def blob(tagged: Tagged) -> bytes:
    """Return the bytes of a tagged value, decoded from base64 and decompressed."""
    if "zb64" in tagged:
        return zlib.decompress(base64.b64decode(tagged["zb64"]))
    return base64.b64decode(tagged["b64"])


def value(tagged: Tagged) -> Any:
    """Return the writer's input value."""
    return _VALUES[tagged["t"]](tagged)


def sample(tagged: dict[str, Tagged]) -> dict[str, Any]:
    """Return the writer's input sample."""
    return {column: value(item) for column, item in tagged.items()}


def without_palette(item: Any, encoding: str) -> Any:
    """Return an image without its palette, which Streaming drops and npstream rejects."""
    if encoding != "pil" or not item.getpalette():
        return item
    from PIL import Image

    return Image.frombytes(item.mode, item.size, item.tobytes())


def _ndarray(tagged: Tagged) -> Any:
    array = np.frombuffer(blob(tagged), dtype=tagged["dtype"])
    return array.reshape(tagged["shape"]).copy()


def _json(tagged: Tagged) -> Any:
    return _ndarray(tagged["ndarray"]) if "ndarray" in tagged else json.loads(tagged["text"])


def _image(tagged: Tagged) -> Any:
    from PIL import Image

    if tagged["format"] == "JPEG":
        image = Image.open(_jpeg_file(blob(tagged["file"])))
        image.load()  # closes the file
        return image
    if tagged["format"] == "PNG":
        return Image.open(io.BytesIO(blob(tagged["file"])))
    image = Image.frombytes(tagged["mode"], tuple(tagged["size"]), blob(tagged["raw"]))
    if "palette" in tagged:
        image.putpalette(blob(tagged["palette"]), tagged["palette_mode"])
    return image


def _jpeg_file(data: bytes) -> Path:
    """Write a JPEG file, and return its path.

    A writer stores the bytes of the file that PIL opened, not those of the image.
    """
    path = _scratch_directory() / f"{hashlib.sha256(data).hexdigest()}.jpg"
    if not path.exists():
        path.write_bytes(data)
    return path


@functools.cache
def _scratch_directory() -> Path:
    path = tempfile.mkdtemp(prefix="npstream-golden-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


_VALUES = {
    "none": lambda tagged: None,
    "bool": lambda tagged: tagged["v"],
    "str": lambda tagged: tagged["v"],
    "int": lambda tagged: tagged["v"] if "v" in tagged else int(tagged["s"]),
    "float": lambda tagged: float.fromhex(tagged["hex"]),
    "bytes": blob,
    "decimal": lambda tagged: decimal.Decimal(tagged["v"]),
    "scalar": lambda tagged: np.frombuffer(bytes.fromhex(tagged["hex"]), tagged["dtype"])[0],
    "ndarray": _ndarray,
    "list": lambda tagged: [value(item) for item in tagged["v"]],
    "json": _json,
    "pkl": lambda tagged: pickle.loads(blob(tagged["pickle4"])),
    "image": _image,
}


def assert_same(actual: Any, tagged: Tagged, where: str = "") -> None:
    """Assert that a decoded value equals the expected one in type, dtype, shape and all bits.

    Pickled values are compared by the name of their type and their repr.
    """
    kind = tagged["t"]
    if kind == "list":
        assert type(actual) is list, f"{where}: {type(actual)} is not a list"
        assert len(actual) == len(tagged["v"]), f"{where}: {len(actual)} items"
        for i, (item, expected_item) in enumerate(zip(actual, tagged["v"], strict=True)):
            assert_same(item, expected_item, f"{where}[{i}]")
        return
    assert _identity(actual, kind) == _expected_identity(tagged), f"{where}: {actual!r}"


def assert_same_sample(actual: Any, tagged: dict[str, Tagged], where: str = "") -> None:
    """Assert that a sample has exactly the expected columns and values."""
    assert set(actual) == set(tagged), f"{where}: columns {sorted(actual)}"
    for column, item in tagged.items():
        assert_same(actual[column], item, f"{where}[{column!r}]")


def _expected_identity(tagged: Tagged) -> Any:
    kind = tagged["t"]
    if kind == "pkl":
        return tagged["type"], tagged["repr"]
    if kind == "json":
        return json.dumps(json.loads(tagged["text"]))
    if kind == "image" and tagged["format"] is None:
        return None, tagged["mode"], tuple(tagged["size"]), blob(tagged["raw"]), None
    return _identity(value(tagged), kind)


def _identity(actual: Any, kind: str) -> Any:
    """Return a comparable form of a value, equal only for identical values of the same kind."""
    if kind == "pkl":
        return type(actual).__name__, repr(actual)
    if kind == "json":
        return json.dumps(actual)
    if kind == "float" and type(actual) is float:
        return actual.hex()
    if kind == "decimal":
        return type(actual), str(actual)
    if kind == "scalar" and isinstance(actual, np.generic):
        return actual.dtype, actual.tobytes()
    if kind == "ndarray" and isinstance(actual, np.ndarray):
        return actual.dtype, actual.shape, actual.tobytes()
    if kind == "image" and hasattr(actual, "getpalette"):
        # The pil encoding stores no palette.
        palette = actual.getpalette() if actual.format else None
        return actual.format, actual.mode, actual.size, actual.tobytes(), palette
    return type(actual), actual

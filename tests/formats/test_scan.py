"""Samples that vary in size are split in the same way by the kernel and by NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npstream.errors import FormatError
from npstream.formats import scan
from npstream.formats.index import Schema
from npstream.formats.mds import sample_layout

SCHEMA = Schema(
    "mds",
    ("a", "b", "c", "d", "e", "f"),
    ("str", "int8", "bytes", "int64", "uint16", "int32"),
    (None, 1, None, 8, 2, 4),
)
DTYPES = {name: np.dtype(kind) for name, kind in (("b", "i1"), ("d", "<i8"), ("e", "<u2"))}


def encode(rows):
    """Return the bytes of samples, and the offset of each."""
    bodies = []
    for a, c, numbers in rows:
        b, d, e, f = (
            np.dtype(kind).type(x).tobytes() for kind, x in zip("bqHi", numbers, strict=True)
        )
        head = np.array([len(a), len(c)], "<u4").tobytes()
        bodies.append(head + a + b + c + d + e + f)
    offsets = np.cumsum([0, *map(len, bodies)])
    return np.frombuffer(b"".join(bodies), np.uint8), offsets


def split(data, offsets, compiled, monkeypatch, first=0):
    is_loaded = property(lambda self: compiled)
    monkeypatch.setattr(type(scan.find_columns), "is_loaded", is_loaded)
    monkeypatch.setattr(scan, "_MAX_NUMPY_SAMPLES", 1 << 60)
    scalars = {name: np.empty(len(offsets) - 1, dtype) for name, dtype in DTYPES.items()}
    return scan.split_samples(data, offsets, sample_layout(SCHEMA), scalars, first), scalars


NUMBERS = st.tuples(
    st.integers(-128, 127), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**16 - 1),
    st.integers(-(2**31), 2**31 - 1),
)  # fmt: skip


@pytest.mark.parametrize("compiled", [True, False], ids=["kernel", "NumPy"])
@given(rows=st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=5), NUMBERS), max_size=6))
def test_columns_are_those_that_were_encoded(compiled, rows):
    data, offsets = encode(rows)
    with pytest.MonkeyPatch.context() as monkeypatch:
        chunk, scalars = split(data, offsets, compiled, monkeypatch)
    for k, name in enumerate(DTYPES):
        assert scalars[name].dtype == DTYPES[name]
        assert scalars[name].tolist() == [numbers[k] for _, _, numbers in rows]
    for k, name in enumerate("ac"):
        assert chunk.nbytes[name].tolist() == [len(row[k]) for row in rows]
        spans = zip(chunk.begins[name].tolist(), chunk.nbytes[name].tolist(), strict=True)
        bodies = [bytes(data[begin : begin + size]) for begin, size in spans]
        assert bodies == [row[k] for row in rows]
    numbers = [data[begin : begin + 4].view("<i4")[0] for begin in chunk.begins["f"]]
    assert numbers == [row[2][3] for row in rows]


@pytest.mark.parametrize("compiled", [True, False], ids=["kernel", "NumPy"])
@pytest.mark.parametrize("how", ["longer", "shorter", "beyond", "truncated"])
def test_sizes_that_do_not_add_up_raise(how, compiled, monkeypatch):
    data, offsets = encode([(b"abc", b"de", (1, 2, 3, 4))] * 3)
    data = data.copy()
    begin = offsets[1]
    if how == "truncated":  # the sample is too short for its sizes
        offsets = np.array([offsets[0], offsets[1], offsets[1] + 3, offsets[3]])
    else:
        size = {"longer": 4, "shorter": 2, "beyond": 2**32 - 1}[how]
        data[begin : begin + 4] = np.array([size], "<u4").view(np.uint8)
    with pytest.raises(FormatError, match="sample 8: the sizes of its columns do not add up"):
        split(data, offsets, compiled, monkeypatch, first=7)

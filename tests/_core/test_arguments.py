from __future__ import annotations

import pytest
from golden_data import units

from npstream._core.arguments import parse_size


@pytest.mark.parametrize(("text", "size", "refused"), units()["bytes_to_int"])
def test_sizes_are_streamings(text, size, refused):
    if refused or size < 0:
        with pytest.raises(ValueError, match="size"):
            parse_size(text)
    else:
        assert parse_size(text) == size
        assert type(parse_size(text)) is int


@pytest.mark.parametrize("power", range(1, 9))
def test_every_unit_is_a_power_of_1024(power):
    letter = "kmgtpezy"[power - 1]
    for unit in (f"{letter}b", f"{letter}ib", f"{letter.upper()}B", f"{letter.upper()}iB"):
        assert parse_size(f"3{unit}") == parse_size(f"3 {unit}") == 3 * 1024**power
    assert parse_size(f"0.5{letter}ib") == 1024**power // 2


def test_none_is_no_size():
    assert parse_size(None) is None


@pytest.mark.parametrize("text", ["64Mi", "ib", "1ib", ".b", "1.5", "1,5kb", "٣kb", "1 2kb", "∞"])
def test_refused_text_is_quoted(text):
    with pytest.raises(ValueError, match=r"cannot read the size '.*KiB"):
        parse_size(text)


@pytest.mark.parametrize("number", [-1, float("nan"), float("inf")])
def test_a_size_is_finite_and_not_negative(number):
    with pytest.raises(ValueError, match=f"not {number}"):
        parse_size(number)

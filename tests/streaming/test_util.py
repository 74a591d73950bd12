"""The helper functions return what Streaming's return."""

from __future__ import annotations

import pytest

from npstream.streaming.base.util import (
    bytes_to_int,
    clean_stale_shared_memory,
    get_list_arg,
    number_abbrev_to_int,
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1234", 1234), ("10b", 10), (" 64KB ", 65536), ("1.5mb", 1572864), ("2gb", 2 << 30),
        ("3tb", 3 << 40), ("1pb", 1 << 50), ("1eb", 1 << 60), ("1zb", 1 << 70), ("1yb", 1 << 80),
        (7, 7), (7.9, 7),
    ],
)  # fmt: skip
def test_bytes(text, number):
    assert bytes_to_int(text) == number


@pytest.mark.parametrize("text", ["", "kb", "1.5", "1.5b", "-3", "1xb", "b", "10 q"])
def test_invalid_bytes(text):
    with pytest.raises(ValueError, match="expected a number, with one of the suffixes b, kb, mb"):
        bytes_to_int(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1234", 1234), ("100k", 10**5), (" 1.5M ", 1500000), ("77b", 77 * 10**9),
        ("2T", 2 * 10**12), (7, 7), (7.9, 7),
    ],
)  # fmt: skip
def test_numbers(text, number):
    assert number_abbrev_to_int(text) == number


@pytest.mark.parametrize("text", ["", "k", "1.5", "-3", "1x"])
def test_invalid_numbers(text):
    with pytest.raises(ValueError, match="expected a number, with one of the suffixes k, m, b, t"):
        number_abbrev_to_int(text)


def test_list_arguments():
    assert get_list_arg("a,b") == ["a", "b"]
    assert get_list_arg("a") == ["a"]
    assert get_list_arg("") == []


def test_there_is_no_shared_memory_to_clean():
    assert clean_stale_shared_memory() is None

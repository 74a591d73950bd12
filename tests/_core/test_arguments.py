"""Sizes, counts and quantities as arguments and in messages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from golden_data import units

import npstream
from npstream._core.arguments import parse_seconds, parse_size, quantity, size_text

PLURALS = re.compile(
    r" (more |other )?(attempts|axes|batches|bits|bytes|chunks|columns|datasets|elements|encodings"
    r"|fields|files|lanes|nodes|nulls|numbers|parts|positions|ranks|requests|rows|samples|shards"
    r"|sizes|sources|streams|stretches|units|values|weights|workers)\b"
)
"""Plurals that an f-string must not put after a count that may be 1."""

ABOVE_ONE = {
    "ATTEMPTS", "HASH_BLOCK", "count", "_MAX_SIZE", "MAX_BOUND", "bound",
    "file.MAX_REQUEST_SIZE", "max_axes", "initial_nodes", "samples / seconds", "self.lanes",
}  # fmt: skip
"""Expressions in f-strings before a plural whose value is never 1."""

NOT_COUNTS = {
    "encoding",
    "encoding.name",
    "field.encoding.name",
    "kind",
    "schema.format",
    "sorted(ranks)",
    "span",
}
"""Expressions in f-strings before a plural that are not counts."""


@pytest.mark.parametrize(("text", "size", "refused"), units()["bytes_to_int"])
def test_sizes_are_parsed_as_streaming_parses_them(text, size, refused):
    if refused or size < 0:  # Streaming accepts negative sizes
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


def test_a_size_of_none_stays_none():
    assert parse_size(None) is None


@pytest.mark.parametrize("text", ["64Mi", "ib", "1ib", ".b", "1.5", "1,5kb", "٣kb", "1 2kb", "∞"])
def test_errors_quote_invalid_text(text):
    with pytest.raises(ValueError, match=r"cannot read the size '.*KiB"):
        parse_size(text)


@pytest.mark.parametrize("number", [-1, float("nan"), float("inf")])
def test_a_size_must_be_finite_and_not_negative(number):
    with pytest.raises(ValueError, match=f"not {number}"):
        parse_size(number)


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (0, "byte", "0 bytes"),
        (1, "shard", "1 shard"),
        (2, "axis", "2 axes"),
        (3, "box", "3 boxes"),
        (1000, "batch", "1,000 batches"),
    ],
)
def test_quantities_use_singular_and_plural(count, noun, text):
    assert quantity(count, noun) == text
    assert size_text(1) == "1 byte"


def counted_plurals(tree: ast.AST) -> Iterator[str]:
    """Yield the expressions that f-strings put directly before a plural."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            for part, after in zip(node.values, node.values[1:], strict=False):
                if (
                    isinstance(part, ast.FormattedValue)
                    and isinstance(after, ast.Constant)
                    and PLURALS.match(after.value)
                ):
                    yield ast.unparse(part.value)


def test_messages_use_the_singular_for_one():
    package = Path(npstream.__file__).parent
    uses = {
        (f"{path.relative_to(package)}: {expression}", expression)
        for path in package.rglob("*.py")
        for expression in counted_plurals(ast.parse(path.read_text()))
        if not expression.startswith("short_repr(")  # a value of the user, not a count
    }
    allowed = ABOVE_ONE | NOT_COUNTS
    assert {use for use, expression in uses if expression not in allowed} == set(), (
        "write quantity(count, noun)"
    )
    assert allowed <= {expression for _, expression in uses}, "remove these entries"


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        ("10min", 600.0), ("90s", 90.0), ("1h", 3600.0), ("2 d", 172_800.0), (" 1.5 H ", 5400.0),
        ("30", 30.0), (".5s", 0.5), (0, 0.0), (2.5, 2.5),
    ],
)  # fmt: skip
def test_durations_are_seconds(duration, seconds):
    assert parse_seconds("outage", duration) == seconds
    assert type(parse_seconds("outage", duration)) is float


@pytest.mark.parametrize("text", ["", "min", "10 minutes", "1h30min", "-1s", "nan", "1e3", "1ms"])
def test_other_texts_are_no_durations(text):
    with pytest.raises(ValueError, match=f"outage='{text}': expected a number of seconds"):
        parse_seconds("outage", text)


@pytest.mark.parametrize("number", [-1, -0.5, float("inf"), float("nan")])
def test_durations_are_finite_and_not_negative(number):
    with pytest.raises(ValueError, match="expected a finite number of seconds, 0 or more"):
        parse_seconds("outage", number)


@pytest.mark.parametrize("other", [None, True, [1], b"1s"])
def test_durations_are_numbers_or_text(other):
    with pytest.raises(TypeError, match="expected a number of seconds"):
        parse_seconds("outage", other)

"""Tables of text: their width, their cells, and what no value may do to a terminal."""

from __future__ import annotations

import numpy as np
import pytest

from npstream.commands.table import cell_text, display_width, fit, format_table, printable

TEXTS = [
    "x",
    "word " * 30,
    "東京都" * 40,
    "e\u0301" * 90,
    "👍🏽 ok",
    "a\tb\nc",
    "\x1b[31mred",
    "\u202eevil",
]


@pytest.mark.parametrize("width", [20, 33, 80, 200])
@pytest.mark.parametrize("columns", [1, 2, 5, 30])
def test_lines_fit_the_width(width, columns):
    # Each row begins with its number. Its texts start at another one, and are repeated as needed.
    rows = [[row, *TEXTS[row:], *TEXTS[:row]][: columns + 1] for row in range(len(TEXTS))]
    rows = [(row + row[1:] * 30)[: columns + 1] for row in rows]
    names = ["row", *(f"column_{number}" for number in range(columns))]
    lines, omitted = format_table(names, [""] + ["str"] * columns, rows, width)
    assert max(map(display_width, lines)) <= width
    shown = columns - len(omitted)
    assert shown >= 1
    assert omitted == names[1 + shown :]
    # One more column would not fit. The row numbers need 3 cells, each column at least 8 and a gap.
    assert not omitted or (3 + 10 * (shown + 1)) > width


def test_columns_keep_their_width_if_there_is_room():
    lines, omitted = format_table(["row", "a"], ["", "str"], [[0, "x" * 50], [10, "y"]], 80)
    assert lines == ["row  a", "     str", "  0  " + "x" * 50, " 10  y"]
    assert omitted == []


def test_the_widest_columns_are_cut():
    rows = [[0, "short", "long " * 20, 123456789.5]]
    lines, _ = format_table(["row", "a", "b", "c"], ["", "str", "str", "float64"], rows, 40)
    assert lines[2] == "  0  short  long long lo...  123456789.5"
    assert display_width(lines[2]) == 40


def test_wide_characters_are_aligned():
    rows = [[1, "東京", "x"], [2, "e\u0301a", "y"], [3, "abcd", "z"]]
    lines, _ = format_table(["row", "name", "b"], ["", "str", "str"], rows, 80)
    positions = {
        display_width(line[: line.index(end)]) for line, end in zip(lines[2:], "xyz", strict=True)
    }
    assert positions == {11}


def test_numbers_stand_at_the_right_and_text_at_the_left():
    rows = [[0, np.float32(0.1), True, "a"], [1, np.float32(10), False, "bb"]]
    lines, _ = format_table(["row", "score", "ok", "t"], ["", "f", "b", "s"], rows, 80)
    assert lines[2:] == ["  0    0.1  True   a", "  1   10.0  False  bb"]


def test_printable_escapes_control_characters_but_no_spaces():
    for text in TEXTS:
        shown = printable(text)
        assert all(character.isprintable() for character in shown)
    assert printable("a\tb\nc\x7f\u2028\ud800") == r"a\tb\nc\x7f\u2028\ud800"
    assert printable("\u3000x\xa0y") == "\u3000x\xa0y"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.int64(5), "5"), (np.float32(0.1), "0.1"), (True, "True"), (None, "None"),
        (np.datetime64("2026-01-31"), "2026-01-31"), (np.arange(3), "[0 1 2]"),
        (np.arange(1000), "[0 1 2 ... 997 998 999]"), (np.zeros((2, 1)), "(2, 1) [[0.] [0.]]"),
        (b"ab\xff", r"3 bytes b'ab\xff'"), (b"x" * 2048, "2.0 KiB b'" + "x" * 16 + "'..."),
        ({"a": [1, None, "é"]}, '{"a": [1, null, "é"]}'), ([], "[]"), (1 + 2j, "(1+2j)"),
    ],
)  # fmt: skip
def test_cells_show_values_in_short(value, text):
    assert cell_text(value) == text


def test_text_is_cut_between_characters():
    assert fit("東京都庁", 7) == "東京..."
    assert fit("東京都庁", 6) == "東..."
    assert [fit("abcdef", width) for width in (6, 5, 3, 2)] == ["abcdef", "ab...", "...", ".."]

"""HTML tables escape their cells."""

from __future__ import annotations

from npstream.explore.html import table


def test_a_table_escapes_its_cells():
    assert "<td>&lt;b&gt;</td>" in table(["a"], [["<b>"]])

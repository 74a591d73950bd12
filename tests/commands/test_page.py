"""docs/command-line.md names every command; the page's examples run as tests of the page."""

from __future__ import annotations

from pathlib import Path

from npstream.commands.parser import build_parser

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"


def test_the_page_names_every_command():
    text = PAGE.read_text()
    (commands,) = [action.choices for action in build_parser()._actions if action.choices]
    for name in commands:
        assert f"| `{name} " in text or f"| `{name}`" in text, name

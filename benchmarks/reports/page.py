"""Writer of the generated parts of docs/."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
END = "<!-- End. -->\n"


def fill_in(page: str, script: str, text: str, folder: str = "reports") -> None:
    """Replace the text of a page between a script's marker and the next end marker."""
    path = DOCS / page
    mark = f"<!-- What follows is written by `python benchmarks/{folder}/{script}`. -->\n"
    before, _, rest = path.read_text().partition(mark)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{path} has no {mark.strip()} with {END.strip()} after it")
    path.write_text(f"{before}{mark}\n{text}\n{END}{after}")

"""Make the screenshots of the documentation from its notebooks: docs/images/*.png.

python tests/helpers/screenshots.py [--only WORD]
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from browser import Browser
from notebooks import NOTEBOOKS, ROOT, isolate, run_notebook
from PIL import Image

IMAGES = ROOT / "docs" / "images"

MARGIN = 8
"""Pixels of CSS around the outputs."""

SCALE = 1.5
"""Pixels of an image for each pixel of CSS."""

COLORS = 256
"""Number of colors of an image; few colors keep the file small."""

OUTPUTS = """
(() => {
  const parts = ".jp-OutputArea-output :is(table, figure, img, pre, p, .npstream-head)";
  const boxes = %s.flatMap(id => [...document.getElementById("cell-id=" + id)
    .querySelectorAll(parts)]).map(part => {
      const range = document.createRange();  // text is narrower than its element
      range.selectNodeContents(part);
      return (part.matches("table, figure, img") ? part : range).getBoundingClientRect();
    });
  const left = Math.min(...boxes.map(box => box.left));
  const top = Math.min(...boxes.map(box => box.top));
  return [left + scrollX, top + scrollY,
    Math.max(...boxes.map(box => box.right)) - left,
    Math.max(...boxes.map(box => box.bottom)) - top];
})()
"""
"""JavaScript that returns the position and size of the outputs of some cells."""


@dataclass(frozen=True)
class Shot:
    """A screenshot: its name, its notebook, and the cells whose outputs it shows."""

    name: str
    notebook: str
    cells: list[str]
    theme: str = "light"
    width: int = 1100


SHOTS = [
    Shot("dataset", "images", ["rows"]),
    Shot("dataset-dark", "images", ["rows"], "dark"),
    Shot("grid", "images", ["grid"]),
    Shot("describe", "images", ["describe"]),
]


def take(browser: Browser, pages: Path, shot: Shot) -> bytes:
    """Return the file of a screenshot."""
    dark = shot.theme == "dark"
    page = pages / f"{shot.notebook}.{shot.theme}.html"
    browser.open(page, dark=dark, width=shot.width, scale=SCALE)
    x, y, width, height = browser.evaluate(OUTPUTS % shot.cells)
    whole = browser.screenshot(x - MARGIN, y - MARGIN, width + 2 * MARGIN, height + 2 * MARGIN)
    file = io.BytesIO()
    image = Image.open(io.BytesIO(whole)).convert("RGB")
    image.quantize(COLORS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def main() -> None:
    """Make the screenshots whose names contain a word."""
    parser = argparse.ArgumentParser(description="Make the screenshots of the documentation.")
    parser.add_argument("--only", default="", metavar="WORD")
    options = parser.parse_args()
    shots = [shot for shot in SHOTS if options.only in shot.name]
    directory = Path(tempfile.gettempdir(), "notebooks")  # the outputs show this path
    directory.mkdir()
    try:
        isolate(directory)
        for path in NOTEBOOKS:
            if path.stem in {shot.notebook for shot in shots}:
                run_notebook(path, directory)
        with Browser(directory) as browser:
            for shot in shots:
                body = take(browser, directory, shot)
                (IMAGES / f"{shot.name}.png").write_bytes(body)
                print(f"{shot.name}.png: {len(body):,} bytes")
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()

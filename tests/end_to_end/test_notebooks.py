"""The notebooks of the documentation run, and Chromium shows their outputs in light and dark."""

from __future__ import annotations

import html
import importlib.util
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, find_browser
from notebooks import NOTEBOOKS, ROOT, printed

HELPER = ROOT / "tests" / "helpers" / "notebooks.py"
IMAGES = ROOT / "docs" / "images"

MIN_CONTRAST = 4
"""Minimum contrast ratio of text. Jupyter's own gray text on a striped row has 4.2."""

MAX_IMAGE = 150_000
"""Maximum bytes of a screenshot."""

MAX_NOTEBOOK = 700_000
"""Maximum bytes of a notebook with its outputs."""

VOLATILE = {
    # The texts are source files of the installed Python, so they differ between its versions.
    *(("tokens", cell) for cell in ("data", "look", "tokenizer", "blocks", "array", "mix")),
    # How requests are merged depends on the latencies that were measured.
    *(("remote", cell) for cell in ("query", "cache", "few", "epoch")),
}
"""Notebooks and cells whose text may differ between two runs."""

NEEDED_PACKAGES = [
    "PIL", "aiohttp", "ipykernel", "matplotlib", "nbclient", "nbconvert", "pandas", "pyarrow",
    "tokenizers", "torch",
]  # fmt: skip

VSCODE = {
    "vscode-light": {
        "foreground": "#3b3b3b", "descriptionForeground": "#616161",
        "editor-background": "#ffffff", "panel-border": "#e5e5e5", "errorForeground": "#a1260d",
    },
    "vscode-dark": {
        "foreground": "#cccccc", "descriptionForeground": "#9d9d9d",
        "editor-background": "#1f1f1f", "panel-border": "#2b2b2b", "errorForeground": "#f85149",
    },
}  # fmt: skip
"""The colors of VS Code's themes, by the class of a page."""

THEMES = [
    ("light", "light", "light"),
    ("light", "dark", "light"),
    ("dark", "light", "dark"),
    ("dark", "dark", "dark"),
    ("plain", "light", "light"),
    ("plain", "dark", "dark"),
    ("vscode-light", "dark", "light"),
    ("vscode-dark", "light", "dark"),
]
"""The theme of a page, the scheme that the browser prefers, and the outputs' expected scheme."""

pytestmark = pytest.mark.timeout(600)  # the first test runs all notebooks

by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Run all notebooks. Return a directory with the notebooks, their outputs and HTML pages."""
    for name in NEEDED_PACKAGES:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"could not import '{name}': pip install 'npstream[notebooks]'")
    directory = tmp_path_factory.mktemp("notebooks")
    command = [sys.executable, str(HELPER), "--directory", str(directory)]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stderr[-4000:]
    return directory


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if find_browser() is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def cells(path: Path) -> dict[str, dict]:
    return {cell["id"]: cell for cell in json.loads(path.read_text())["cells"]}


def output(pages: Path, notebook: str, cell: str, kind: str) -> str:
    """Return a cell's outputs of a MIME type; the kind "stream" means the printed text."""
    parts = []
    for shown in cells(pages / f"{notebook}.ipynb")[cell]["outputs"]:
        parts += shown.get("text", []) if kind == "stream" else shown.get("data", {}).get(kind, [])
    return "".join(parts)


def table_rows(page: str) -> list[list[str]]:
    """Return the texts of the cells of tables, row by row."""
    return [
        [
            html.unescape(re.sub("<[^>]*>", " ", cell)).strip()
            for cell in re.findall("<t[hd].*?</t[hd]>", row)
        ]
        for row in re.findall("<tr>.*?</tr>", page)
    ]


# The files


@by_name
def test_stored_notebooks_are_run_in_order_and_small(path):
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[a-z]+(-[a-z]+)*", name) for name in ids)
    counts = [c["execution_count"] for c in notebook["cells"] if c["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert all(cell["metadata"] == {} for cell in notebook["cells"])
    assert path.stat().st_size <= MAX_NOTEBOOK


def test_screenshots_are_small_and_shown():
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    text = "".join(document.read_text() for document in documents)
    images = sorted(IMAGES.glob("*.png"))
    assert images
    for image in images:
        assert image.stat().st_size <= MAX_IMAGE, image.name
        assert f"images/{image.name}" in text, image.name


# The outputs


@by_name
def test_cells_print_what_is_stored(pages, path):
    new = cells(pages / path.name)
    for name, cell in cells(path).items():
        if (path.stem, name) in VOLATILE:  # compare only the output types and MIME types
            assert [shown[:2] for shown in printed(new[name])] == [
                shown[:2] for shown in printed(cell)
            ], name
        else:
            assert list(printed(new[name])) == list(printed(cell)), name


@by_name
def test_cells_raise_no_errors_and_print_no_warnings(pages, path):
    for name, cell in cells(pages / path.name).items():
        for shown in cell.get("outputs", []):
            assert shown["output_type"] != "error", (name, "\n".join(shown["traceback"]))
            if shown.get("name") == "stderr":
                text = "".join(shown["text"])  # such as progress
                assert "Warning" not in text, (name, text)
        assert cell["cell_type"] == "markdown" or cell["execution_count"]


def test_the_images_notebook_shows_each_valid_image(pages):
    def shown(cell):
        return output(pages, "images", cell, "text/html")

    # Sample 3 is damaged: 4 of 5 rows and 17 of 18 tiles show an image.
    assert shown("rows").count("<img") == 4
    assert shown("rows").count("<audio") == 5
    assert "OSError" in table_rows(shown("rows"))[4][1]
    assert shown("grid").count("<img") == 17
    assert "all 600 rows" in shown("describe")
    counts = {name: int(count) for name, count, _ in table_rows(shown("counts"))[1:]}
    assert sorted(counts) == ["'blue'", "'green'", "'red'"]
    assert sum(counts.values()) == 600
    assert output(pages, "images", "hist", "image/png")
    radii = [int(row[6]) for row in table_rows(shown("query"))[1:]]
    assert all(radius >= 40 for radius in radii)
    assert shown("query-grid").count("<img") == 12
    assert shown("random").count("<img") == 4
    assert "sample 3" in output(pages, "images", "damaged", "stream")
    assert output(pages, "images", "clean", "text/plain") == "(599, 64, 64, 3)"
    assert shown("batch").count("<img") == 4
    assert output(pages, "images", "sizes", "text/plain").count("3)") == 4
    assert output(pages, "images", "transform", "stream").startswith("(256, 3, 64, 64) float32")


def test_the_text_notebook_finds_footers_and_best_scores(pages):
    def shown(cell):
        return output(pages, "text", cell, "text/html")

    assert [row[0] for row in table_rows(shown("counts"))[1:]] == ["'en'", "'de'", "'fr'"]
    assert re.match(r"1\d\.\d% of the texts", output(pages, "text", "footers", "stream"))
    assert all("cookies" in row[2] for row in table_rows(shown("footers"))[1:])
    assert "cookies" not in shown("choose")
    scores = [float(row[-2]) for row in table_rows(shown("best"))[1:]]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.9
    assert "request" in output(pages, "text", "cost", "text/plain")
    assert "by the side-car" in shown("remote-describe")


def test_the_remote_notebook_prints_its_requests(pages):
    def text(cell):
        return output(pages, "remote", cell, "stream")

    assert "0 requests" in text("describe")
    assert "more than implicit_read_limit=10.0 MiB" in text("gate")
    assert "second read: 0 requests, 0 bytes" in text("cache")
    assert "the rest takes 0 requests" in output(pages, "remote", "prefetch", "text/plain")
    assert output(pages, "remote", "open", "text/html").count("<img") == 5


def test_the_training_notebook_resumes_at_the_same_samples(pages):
    lines = output(pages, "training", "compare", "stream").splitlines()
    assert lines == [
        "two ranks, until the kill: 1 to 46",
        "three ranks: 41 to 100",
        "same samples in each step: True",
        "samples of the first epoch: 6000 distinct samples: 6000",
        "losses differ by less than 0.0001: True",
    ]
    statuses = [output(pages, "training", c, "text/plain") for c in ("whole", "killed", "resumed")]
    assert statuses == ["0", "1", "0"]


def test_the_tokens_notebook_mixes_equal_shares(pages):
    def text(cell):
        return output(pages, "tokens", cell, "text/plain")

    assert output(pages, "tokens", "shares", "stream") == f"{[32] * 20}\n"
    assert (text("run"), text("change"), text("distinct")) == ("1280", "2560", "True")


# In a browser

INSPECT = """
(async () => {
  await Promise.all([...document.images].map(image => image.decode().catch(() => null)));
  await Promise.all([...document.querySelectorAll("audio")].map(audio =>
    audio.readyState || audio.error || new Promise(done => {
      audio.onloadedmetadata = audio.onerror = done;
    })));

  const numbers = text => {
    const parts = text.match(/[\\d.]+/g).map(Number);
    return [parts[0], parts[1], parts[2], parts[3] ?? 1];
  };
  const over = (top, under) => [0, 1, 2].map(k => top[k] * top[3] + under[k] * (1 - top[3]));
  const behind = element => {
    if (!element) return [255, 255, 255];
    const color = numbers(getComputedStyle(element).backgroundColor);
    return color[3] === 1 ? color.slice(0, 3) : over(color, behind(element.parentElement));
  };
  const luminance = color => [0.2126, 0.7152, 0.0722].reduce((sum, weight, k) => {
    const value = color[k] / 255;
    return sum + weight * (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  }, 0);
  const contrast = element => {
    const back = behind(element), text = over(numbers(getComputedStyle(element).color), back);
    const [low, high] = [luminance(back), luminance(text)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const all = selector => [...document.querySelectorAll(selector)];
  const box = element => {
    const {x, y, width, height} = element.getBoundingClientRect();
    return [x + scrollX, y + scrollY, width, height];
  };
  const texts = all(".npstream *").filter(element => element.tagName !== "STYLE"
    && [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
  const isBroken = (text, word) => {
    const range = document.createRange();
    range.setStart(text, word.index);
    range.setEnd(text, word.index + word[0].length);
    return new Set([...range.getClientRects()].map(line => line.top)).size > 1;
  };
  const brokenWords = texts.flatMap(element => [...element.childNodes])
    .filter(node => node.nodeType === 3)
    .flatMap(text => [...text.data.matchAll(/[\\w.,:]{2,24}/g)]
      .filter(word => isBroken(text, word)).map(word => word[0]));
  return {
    broken_words: brokenWords,
    images: all(".npstream img").map(image => [image.naturalWidth, ...box(image)]),
    durations: all("audio").map(audio => audio.duration),
    texts: texts.map(element => [element.textContent, contrast(element)]),
    overflowing: all(".npstream, .npstream td, .npstream th, .npstream figure")
      .filter(element => element.scrollWidth > element.clientWidth + 1
                         || element.tagName === "FIGURE"
                            && element.scrollHeight > element.clientHeight + 1)
      .map(element => [element.tagName, element.textContent]),
    number_alignments: all("td.npstream-n").map(cell => getComputedStyle(cell).textAlign),
    other_alignments: all(".npstream td:not(.npstream-n)")
      .map(cell => getComputedStyle(cell).textAlign),
    outputs: all(".npstream").map(box),
    backgrounds: all(".npstream").map(behind),
    size: [document.documentElement.scrollWidth, document.documentElement.scrollHeight],
    schemes: all(".npstream").map(element => getComputedStyle(element).colorScheme),
  };
})()
"""
"""A JavaScript expression that returns measurements of npstream's outputs in a page."""


def pixels(browser: Browser, x: float, y: float, width: float, height: float) -> np.ndarray:
    """Return a part of the page, of shape (height, width, 3)."""
    from PIL import Image

    file = io.BytesIO(browser.screenshot(round(x), round(y), round(width), round(height)))
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.mark.parametrize(
    ("notebook", "theme", "preferred", "expected"),
    [*(("images", *theme) for theme in THEMES), *(("text", *theme) for theme in THEMES[::3])],
)
def test_outputs_are_readable_in_each_theme(pages, browser, notebook, theme, preferred, expected):
    colors = VSCODE.get(theme, {})
    kind = "plain" if colors else theme
    browser.open(pages / f"{notebook}.{kind}.html", dark=preferred == "dark")
    for name, color in colors.items():
        browser.evaluate(f"document.body.style.setProperty('--vscode-{name}', '{color}')")
    if colors:
        browser.evaluate(f"document.body.classList.add('{theme}')")
    page = browser.evaluate(INSPECT)
    assert page["overflowing"] == []
    assert page["broken_words"] == []
    assert len(page["texts"]) > 100
    assert [text for text in page["texts"] if text[1] < MIN_CONTRAST] == []
    assert set(page["number_alignments"]) == {"right"}
    assert set(page["other_alignments"]) == {"left"}
    assert set(page["schemes"]) == {expected}
    brightness = np.mean(page["backgrounds"], 1)
    assert (brightness < 40).all() if expected == "dark" else (brightness > 240).all()
    shown = pixels(browser, *page["outputs"][0])
    assert len(np.unique(shown @ [1, 1 << 8, 1 << 16])) > 30  # distinct colors


@pytest.mark.parametrize("kind", ["light", "dark"])
def test_a_browser_shows_images_and_players(pages, browser, kind):
    browser.open(pages / f"images.{kind}.html")
    page = browser.evaluate(INSPECT)
    assert page["durations"] == pytest.approx([1.0] * len(page["durations"]))
    assert len(page["durations"]) >= 5
    assert len(page["images"]) >= 40
    whole = pixels(browser, 0, 0, *page["size"])
    for natural_width, *box in page["images"]:
        x, y, width, height = map(round, box)
        assert natural_width > 0  # 0 if the image cannot be decoded
        assert whole[y : y + height, x : x + width].std((0, 1)).max() > 10  # not of one color

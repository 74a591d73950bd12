"""Run notebooks, and write them as pages of HTML, as Jupyter shows them.

python tests/helpers/notebooks.py [NOTEBOOK...] --directory DIRECTORY [--store]

For each ``name.ipynb``, DIRECTORY gets ``name.ipynb`` with outputs, ``name.light.html``,
``name.dark.html``, and ``name.plain.html``, which has none of JupyterLab's colors. With
``--store``, the notebook itself gets the outputs. This is a program, so that Jupyter's threads and
event loops end with it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))

TIMEOUT = 240
"""Seconds that a cell may take: less than pytest's timeout of a test."""


def run_notebook(path: Path, directory: Path) -> None:
    """Run a notebook in a directory of its own, and write it with outputs and as pages."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, 4)
    place = directory / path.stem
    place.mkdir()
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        allow_errors=True,
        coalesce_streams=True,  # how many messages carry a printed text depends on time
        kernel_name="python3",
        shutdown_kernel="immediate",
        record_timing=False,
        resources={"metadata": {"path": str(place)}},
    )
    client.execute()
    make_repeatable(notebook, place)
    nbformat.write(notebook, directory / path.name)
    for kind, template, theme in [
        ("light", "lab", "light"),
        ("dark", "lab", "dark"),
        ("plain", "basic", "light"),
    ]:
        write_page(notebook, directory / f"{path.stem}.{kind}.html", template, theme)


def make_repeatable(notebook: Any, place: Path) -> None:
    """Remove what differs between two runs: directory, port, progress, version of Python."""
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        if cell["cell_type"] != "code":
            continue
        cell["outputs"] = [shown for shown in cell["outputs"] if not is_progress(shown)]
        for shown in cell["outputs"]:
            texts = shown if "text" in shown else shown.get("data", {})
            for kind in ("text", "text/plain", "text/html"):
                if kind in texts:
                    texts[kind] = re.sub(
                        f"{re.escape(str(place))}/|(?<=127.0.0.1):[0-9]+", "", texts[kind]
                    )


def is_progress(shown: Any) -> bool:
    """Return True if an output is text on standard error, and not a warning."""
    return shown.get("name") == "stderr" and "Warning" not in shown["text"]


def printed(cell: Any) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Yield the type, the MIME types and the text of each output of a cell."""
    for shown in cell.get("outputs", []):
        data = shown.get("data", {})
        text = shown.get("text", data.get("text/plain", ""))
        # Names of shards that replace others, and fingerprints, are random.
        yield shown["output_type"], tuple(sorted(data)), re.sub("[0-9a-f]{16}", "#", "".join(text))


def write_page(notebook: object, path: Path, template: str, theme: str) -> None:
    """Write a notebook as a page, whose outputs are shown also without a network."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name=template, theme=theme)
    body, _ = exporter.from_notebook_node(notebook)
    if template == "basic":  # it has no head
        body = f"<!doctype html><meta charset=utf-8><body>{body}</body>"
    path.write_text(body, encoding="utf-8")


def isolate(directory: Path) -> None:
    """Set the directories of Jupyter and IPython, so that no settings of the user apply."""
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        os.environ[name] = str(directory / name.lower())
    os.environ |= {"JUPYTER_PLATFORM_DIRS": "1", "JUPYTER_PREFER_ENV_PATH": "1"}


def main() -> None:
    """Run the given notebooks, by default all of the documentation."""
    parser = argparse.ArgumentParser(description="Run notebooks, and write them as pages.")
    parser.add_argument("notebooks", nargs="*", type=Path, default=NOTEBOOKS)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--store", action="store_true", help="store the outputs in the notebooks")
    options = parser.parse_args()
    isolate(options.directory)
    for path in options.notebooks:
        run_notebook(path, options.directory)
        if options.store:
            shutil.copy(options.directory / path.name, path)


if __name__ == "__main__":
    sys.exit(main())

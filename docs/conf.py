"""Settings of the site: `python -m sphinx -W --keep-going docs build/site` writes it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import npstream

project = "npstream"
author = "the npstream authors"
version = release = npstream.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc"]
exclude_patterns = ["conftest.py"]

myst_heading_anchors = 4

default_role = "code"  # the role of `text` in docstrings

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings have the types
numpydoc_show_class_members = False

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"npstream {version}"
html_show_sourcelink = False
html_copy_source = False


def setup(app: Any) -> None:
    """Connect the functions below."""
    app.connect("source-read", add_contents)
    app.connect("autodoc-skip-member", skip_internal)
    app.connect("autodoc-process-signature", hide_constructor)


def add_contents(app: Any, name: str, source: list[str]) -> None:
    """Add tables of contents to the three pages that list other pages.

    Each section of these pages becomes a table of the pages that it links to. Sphinx raises an
    error for a page that is in no table.
    """
    if name not in ("index", "design/README", "api/index"):
        return
    parts = re.split(r"^## (.*)$", source[0], flags=re.MULTILINE)
    for caption, text in zip(["", *parts[1::2]], parts[::2], strict=True):
        folder = Path(app.srcdir, name).parent
        links = re.findall(r"^(?:\||-) \[[^]]*\]\(([\w./-]+)\.md\)", text, re.MULTILINE)
        pages = [link for link in dict.fromkeys(links) if (folder / f"{link}.md").exists()]
        if pages:
            options = [":hidden:", *([f":caption: {caption}"] if caption else [])]
            source[0] += "\n".join(["\n```{toctree}", *options, "", *pages, "```\n"])


def skip_internal(_app: Any, _kind: str, _name: str, value: Any, skip: bool, _options: Any) -> bool:
    """Leave out methods that only this package calls, as their docstrings say."""
    return skip or "For `npstream." in (inspect.getdoc(value) or "")


def hide_constructor(
    _app: Any, _kind: str, _name: str, value: Any, _options: Any, signature: str | None, _to: Any
) -> tuple[str, None] | None:
    """Show no parameters of a class that users do not construct, as its docstring says."""
    if isinstance(value, type) and signature and "Made by `" in (inspect.getdoc(value) or ""):
        return "", None
    return None

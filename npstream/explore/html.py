"""HTML representations of datasets and columns, and `table`, which makes tables of notebooks."""

from __future__ import annotations

from npstream.rendering.html import table

__all__ = ["table"]

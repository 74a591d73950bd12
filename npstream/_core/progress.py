"""A progress line for work that takes more than two seconds, on a terminal or in a notebook.

Tested in tests/dataset/test_dataset.py.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

_DELAY = 2.0
"""Seconds before the first line is printed."""

_INTERVAL = 0.2
"""Seconds between two lines."""


def progress(steps: Sequence[T], what: str) -> Iterator[T]:
    """Yield the steps; after two seconds, print the progress if a terminal or notebook shows it."""
    began = last_print = time.monotonic()
    visible = sys.stderr is not None and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    has_printed = False
    for done, step in enumerate(steps):
        now = time.monotonic()
        if visible and now - began > _DELAY and now - last_print > _INTERVAL:
            remaining = (now - began) / done * (len(steps) - done) if done else 0.0
            line = f"\r{what}: {done / len(steps):4.0%}, {remaining:.0f} s left "
            print(line, end="", file=sys.stderr, flush=True)
            last_print, has_printed = now, True
        yield step
    if has_printed:
        print(f"\r{what}: 100%, {time.monotonic() - began:.0f} s   ", file=sys.stderr)

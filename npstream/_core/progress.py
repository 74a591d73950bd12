"""Progress of what takes more than two seconds, shown where somebody looks.

Tested in tests/dataset/test_dataset.py.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

_PATIENCE = 2.0
_INTERVAL = 0.2


def progress(steps: Sequence[T], what: str) -> Iterator[T]:
    """Yield the steps; after two seconds, say on a terminal or notebook how many are done."""
    began = shown = time.monotonic()
    visible = sys.stderr is not None and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    drawn = False
    for done, step in enumerate(steps):
        now = time.monotonic()
        if visible and now - began > _PATIENCE and now - shown > _INTERVAL:
            left = (now - began) / done * (len(steps) - done) if done else 0.0
            text = f"\r{what}: {done / len(steps):4.0%}, {left:.0f} s left "
            print(text, end="", file=sys.stderr, flush=True)
            shown, drawn = now, True
        yield step
    if drawn:
        print(f"\r{what}: 100%, {time.monotonic() - began:.0f} s   ", file=sys.stderr)

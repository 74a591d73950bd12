"""Progress of long operations, on a terminal or in a notebook.

`progress` is for operations with a known number of steps, `show_progress` is for writes.

Tested in tests/writing/test_progress.py.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from npstream._core.arguments import quantity

T = TypeVar("T")

__all__ = ["progress", "show_progress"]

_DELAY = 2.0
"""Seconds before `progress` prints the first line."""

_INTERVAL = 0.2
"""Seconds between two lines."""

_WRITE_DELAY = 1.0
"""Seconds before the progress of a write is shown, if the user did not request it."""

_WRITE_INTERVAL = 0.25
"""Seconds between two updates of a write's progress."""


def progress(steps: Sequence[T], title: str) -> Iterator[T]:
    """Yield the steps; after two seconds, print the progress if a terminal or notebook shows it.

    Each line that is printed begins with `title`.
    """
    start = last_print = time.monotonic()
    is_visible = sys.stderr is not None and _is_interactive()
    has_printed = False
    for count, step in enumerate(steps):
        now = time.monotonic()
        if is_visible and now - start > _DELAY and now - last_print > _INTERVAL:
            remaining = (now - start) / count * (len(steps) - count) if count else 0.0
            line = f"\r{title}: {count / len(steps):4.0%}, {remaining:.0f} s left "
            print(line, end="", file=sys.stderr, flush=True)
            last_print, has_printed = now, True
        yield step
    if has_printed:
        print(f"\r{title}: 100%, {time.monotonic() - start:.0f} s   ", file=sys.stderr)


class _Counts(Protocol):
    """The counts of a write in progress."""

    @property
    def samples(self) -> int: ...

    @property
    def total_bytes(self) -> int: ...


@contextmanager
def show_progress(counts: _Counts, enabled: bool | None) -> Iterator[None]:
    """Show the progress of a write while the block runs.

    Parameters
    ----------
    counts : object
        Its attributes `samples` and `total_bytes` are the current counts.
    enabled : bool or None
        Whether to show progress. None shows it after a second, on a terminal or in a notebook only.
    """
    if sys.stderr is None or enabled is False or (enabled is None and not _is_interactive()):
        yield
        return
    stop = threading.Event()
    delay = _WRITE_DELAY if enabled is None else 0.0
    thread = threading.Thread(
        target=_show, args=(counts, delay, stop), name="npstream-progress", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _is_interactive() -> bool:
    """Return True on a terminal or in a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def _show(counts: _Counts, delay: float, stop: threading.Event) -> None:
    """Show progress at each interval until `stop` is set, then a last time."""
    start = time.monotonic()
    if delay and stop.wait(delay):
        return
    display = _tqdm(start) or _Line(start)
    try:
        while not stop.wait(_WRITE_INTERVAL):
            display.show(counts.samples, counts.total_bytes)
        display.show(counts.samples, counts.total_bytes)
    finally:
        display.close()


class _Line:
    """A line on standard error that each update overwrites."""

    def __init__(self, start: float) -> None:
        self._start = start

    def show(self, samples: int, nbytes: int) -> None:
        seconds = max(time.monotonic() - self._start, 1e-3)
        line = (
            f"\r{quantity(samples, 'sample')}, {_size_text(nbytes)}, "
            f"{samples / seconds:,.0f} samples/s, {_size_text(nbytes / seconds)}/s  "
        )
        print(line, end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        print(file=sys.stderr, flush=True)


class _Bar:
    """A progress bar of tqdm."""

    def __init__(self, bar: Any, start: float) -> None:
        self._bar = bar
        self._start = start

    def show(self, samples: int, nbytes: int) -> None:
        rate = nbytes / max(time.monotonic() - self._start, 1e-3)
        self._bar.set_postfix_str(f"{_size_text(nbytes)}, {_size_text(rate)}/s", refresh=False)
        self._bar.update(samples - self._bar.n)

    def close(self) -> None:
        self._bar.close()


def _tqdm(start: float) -> _Bar | None:
    """Return a progress bar of tqdm, or None if tqdm is not installed."""
    import importlib.util

    # In a notebook without widgets, tqdm.auto prints a warning. The bar of tqdm.std is text.
    is_text = "ipykernel" in sys.modules and importlib.util.find_spec("ipywidgets") is None
    try:
        tqdm = importlib.import_module("tqdm.std" if is_text else "tqdm.auto").tqdm
    except ImportError:
        return None
    return _Bar(tqdm(unit=" samples", unit_scale=True, desc="writing"), start)


def _size_text(nbytes: float) -> str:
    """Return a number of bytes as text.

    Examples
    --------
    >>> _size_text(1536), _size_text(3 << 30)
    ('1.5 KiB', '3.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TiB"

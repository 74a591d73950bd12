"""Output of commands: terminal styles, JSON, and error messages."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Any

__all__ = [
    "TRACEBACK",
    "json_text",
    "json_value",
    "print_error",
    "print_json",
    "run_for_each",
    "shows_tracebacks",
    "style_text",
]

TRACEBACK = "NPSTREAM_TRACEBACK"
"""The environment variable that makes error messages include tracebacks."""

STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32"}
"""Name of a style -> its number in an escape sequence."""

USER_ERRORS = (OSError, ValueError, TypeError, ArithmeticError, IndexError, MemoryError)
"""Builtin exceptions whose messages are for the user. Others are bugs of this program."""


def style_text(text: str, style: str, stream: IO[str] | None = None) -> str:
    """Return text with a style, if the stream is a terminal that shows styles.

    Parameters
    ----------
    text : str
    style : {"bold", "dim", "red", "green"}
    stream : file, optional
        By default standard output.
    """
    stream = sys.stdout if stream is None else stream
    if not text or stream is None or not stream.isatty():
        return text
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m"


# Errors


def shows_tracebacks() -> bool:
    """Return True if NPSTREAM_TRACEBACK is set, by the user or by ``--traceback``."""
    return os.environ.get(TRACEBACK, "") not in ("", "0")


def print_error(error: BaseException, words: Iterable[str] = ()) -> None:
    """Print an exception on standard error.

    Parameters
    ----------
    error : BaseException
    words : iterable of str
        The command line, whose secrets the message must not contain.
    """
    if shows_tracebacks():
        import traceback

        traceback.print_exception(error)
        return
    print_message("\n".join([_message(error, words), *_notes(error)]))


def print_message(text: str) -> None:
    """Print a message of the program on standard error."""
    print(f"{style_text('npstream:', 'red', sys.stderr)} {text}", file=sys.stderr)


def _message(error: BaseException, words: Iterable[str]) -> str:
    from npstream.errors import CostError, NpstreamError

    if isinstance(error, CostError):
        return f"{error}\non the command line: --read-limit SIZE, or --read-limit none"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, (NpstreamError, *USER_ERRORS)):
        return str(error) or type(error).__name__
    from npstream._core.redaction import redact, url_secrets

    text = redact(str(error), [secret for word in words for secret in url_secrets(word)])
    return f"{type(error).__name__}: {text}; --traceback shows where it was raised"


def _notes(error: BaseException) -> list[str]:
    notes: list[str] = getattr(error, "__notes__", [])
    return notes


def run_for_each(urls: Sequence[str], run: Callable[[str], int | None]) -> int:
    """Call a function with each URL, and return the largest exit status.

    With one URL, an exception is raised. With several URLs, the exception is printed, the status
    becomes 1, and the function is called with the next URL.
    """
    if len(urls) == 1:
        return run(urls[0]) or 0
    status = 0
    for url in urls:
        try:
            status = max(status, run(url) or 0)
        except BrokenPipeError:
            raise
        except Exception as error:
            sys.stdout.flush()
            print_error(error, urls)
            status = 1
    return status


# JSON


def print_json(document: Any) -> None:
    """Print a document as one line of JSON."""
    print(json_text(document))


def json_text(document: Any) -> str:
    """Return a document as one line of JSON, which standard output can encode.

    Examples
    --------
    >>> json_text({"x": float("nan"), "text": "é"})
    '{"x": "NaN", "text": "é"}'
    """
    import json

    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("_", "-")
    text = json.dumps(json_value(document), ensure_ascii=encoding not in ("utf-8", "utf8"))
    # A lone surrogate cannot be encoded, so it becomes its escape in JSON, such as \udc80.
    return text.encode("utf-8", "backslashreplace").decode()


def json_value(value: Any) -> Any:
    """Return a value of a column, or a container of values, as a value that JSON can encode.

    Arrays become lists. Times become text in ISO 8601. Bytes become base64. A float that is not
    finite becomes "NaN", "Infinity" or "-Infinity". Other objects become their text.

    Examples
    --------
    >>> json_value({"x": np.arange(2), "f": np.float32(0.1), "b": b"abc"})
    {'x': [0, 1], 'f': 0.1, 'b': 'YWJj'}
    >>> json_value(np.datetime64("2026-01-31")), json_value([np.inf, None, True])
    ('2026-01-31', ['Infinity', None, True])
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        import base64

        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(item) for item in value]
    if isinstance(value, float) and type(value).__module__ != "numpy":
        return _json_float(value)
    return _json_array_value(value)


def _json_float(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _json_array_value(value: Any) -> Any:
    """Return an array, a NumPy scalar or another object as a value that JSON can encode."""
    import numpy as np

    if isinstance(value, np.ndarray):
        return [json_value(item) for item in value] if value.ndim else json_value(value[()])
    if isinstance(value, np.datetime64 | np.timedelta64):
        return None if np.isnat(value) else str(value)
    if isinstance(value, np.bool_ | np.integer):
        return value.item()
    if isinstance(value, np.floating):
        # The shortest text of a float32 has fewer digits than the same value as a Python float.
        return _json_float(float(str(value)))
    if isinstance(value, np.generic) and isinstance(value.item(), str | bytes):
        return json_value(value.item())
    return str(value)  # a complex number, or a pickled object

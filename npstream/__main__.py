"""The command line: ``python -m npstream`` or ``npstream``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from npstream.commands.output import TRACEBACK, print_error, print_message, shows_tracebacks
from npstream.commands.parser import build_parser

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 plus the number of SIGINT, as in a shell."""

READER_GONE = 141
"""Exit status if the reader of a pipe has closed it: 128 plus the number of SIGPIPE."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the process's exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        The command line's arguments; by default those of this process. If they are omitted, the
        function also changes the process's streams, hooks and warnings for use in a terminal.

    Returns
    -------
    int
        0, or 1 after an error, or the status of the command.
    """
    is_process = arguments is None
    words = sys.argv[1:] if arguments is None else arguments
    if is_process:
        _set_up_process()
    try:
        try:
            return _run(words)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # an error of this call is reported below, too
    except KeyboardInterrupt:
        if is_process:
            # Python then ends the process by SIGINT, not by an exit status. So a shell also ends
            # the loop or script that contains the command.
            sys.excepthook = _show_exception
            raise
        print_message("interrupted")
        return INTERRUPTED
    except BrokenPipeError as error:
        if _is_reader_gone():
            _discard_output()
            return READER_GONE
        print_error(error, words)
        return 1
    except Exception as error:
        print_error(error, words)
        _discard_output()
        return 1


def _run(words: Sequence[str]) -> int:
    parser = build_parser(words)
    if not words:
        parser.print_help()
        return 0
    options = parser.parse_args(words)
    if options.traceback:
        os.environ[TRACEBACK] = "full"
    status: int | None = options.command(options)
    return status or 0


def _set_up_process() -> None:
    """Escape characters that the streams cannot encode, and show each warning as one line."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    if not shows_tracebacks():
        import warnings

        warnings.formatwarning = lambda message, *_: f"npstream: warning: {message}\n"


def _show_exception(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Show an exception that ends the process; for Ctrl-C, show only a message."""
    if issubclass(kind, KeyboardInterrupt) and not shows_tracebacks():
        print_message("interrupted")
    else:
        sys.__excepthook__(kind, error, traceback)


def _is_reader_gone() -> bool:
    """Return True if standard output is a pipe or a socket whose other end is closed."""
    import select

    poll = select.poll()
    with suppress(AttributeError, OSError, ValueError):  # stdout has no file descriptor
        poll.register(sys.stdout.fileno(), 0)
        return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
    return False


def _discard_output() -> None:
    """Discard output that cannot be written, so Python does not write it again when it exits."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        with suppress(AttributeError, OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)


if __name__ == "__main__":
    sys.exit(main())

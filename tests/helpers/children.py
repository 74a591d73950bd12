"""Helpers that run a function in a forked child process."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable

__all__ = ["fork_child", "run_in_child", "wait_for_child"]


def run_in_child(work: Callable[[], object], seconds: int = 120) -> None:
    """Fork, run a function in the child, and assert that it returns.

    The child exits after the function, or after a timeout, and never continues with the tests.
    """
    assert wait_for_child(fork_child(work, seconds)) == 0


def fork_child(work: Callable[[], object], seconds: int = 120) -> int:
    """Fork, run a function in the child, and return the child's process id."""
    if (child := os.fork()) == 0:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # replaces the handler of pytest-timeout
            signal.alarm(seconds)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def wait_for_child(child: int) -> int:
    """Wait for a child to exit, and return its status: 0 if its function returned."""
    return os.waitpid(child, 0)[1]

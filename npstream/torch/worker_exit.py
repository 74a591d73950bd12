"""Provide `exit_before_finalizing`, for DataLoader workers that were started with "spawn".

If a loop over a DataLoader is left, a thread of each worker may still pickle tensors while the
worker exits. Python 3.13 and earlier end such a thread when it asks for the GIL after the
interpreter began to finalize. If the thread is in a destructor of a tensor, that aborts the
process, and torch reports that its worker was killed. multiprocessing does not finalize the
interpreter of forked workers. This module does the same for spawned workers.

Tested in tests/test_torch.py.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from multiprocessing import current_process, util
from multiprocessing.context import SpawnProcess

__all__ = ["exit_before_finalizing"]

_LAST = -sys.maxsize
"""The exit priority of a finalizer that multiprocessing calls after all others."""

_is_registered = False


def exit_before_finalizing() -> None:
    """Let this process exit without finalizing its interpreter, if multiprocessing spawned it.

    Other threads, exit handlers and buffered output are handled as in any other process.
    """
    global _is_registered
    if sys.version_info >= (3, 14) or _is_registered:
        return
    if isinstance(current_process(), SpawnProcess):
        _is_registered = True
        util.Finalize(None, _exit, exitpriority=_LAST)


def _exit() -> None:
    if sys.exc_info()[0] is not None:
        return  # multiprocessing reports the exception, and chooses the exit status
    # The steps of multiprocessing and Python before the interpreter is finalized.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    util._flush_std_streams()  # type: ignore[attr-defined]
    os._exit(0)

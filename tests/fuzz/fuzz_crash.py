"""A worker of `fuzz` that dies of its mutation number 1, for the test of what watches it."""

from __future__ import annotations

import os
import signal
import sys

import fuzz

_run = fuzz._run


def crash(damaged: fuzz.Kind, seed: int, number: int) -> None:
    """Run a mutation, or die of it."""
    if number == 1:
        print('{"start": 1, "what": "a crash"}', flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    _run(damaged, seed, number)


if __name__ == "__main__":
    fuzz._run = crash
    sys.exit(fuzz.main())

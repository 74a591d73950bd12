"""A worker of `fuzz` that crashes at mutation 1, for the test of the main process."""

from __future__ import annotations

import os
import signal
import sys

import fuzz

_run = fuzz._run


def crash(target: fuzz.Kind, seed: int, number: int) -> None:
    """Run a mutation, or crash at mutation 1."""
    if number == 1:
        print('{"start": 1, "what": "a crash"}', flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    _run(target, seed, number)


if __name__ == "__main__":
    fuzz._run = crash
    sys.exit(fuzz.main())

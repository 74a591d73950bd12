"""Provide `FailureRecord`, the samples that an iteration could not read.

Workers of a DataLoader are other processes. Each appends its failures to one file, with one write
for each, so that the main process can count and list them. The file exists only after a worker had
a failure. The process that made the record deletes it.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from npstream._core.arguments import quantity
from npstream._core.fork import is_spawning
from npstream._core.log import warn

_MAX_REASON = 1000
"""Maximum number of characters of a reason."""


class FailedSample(NamedTuple):
    """A sample that an iteration could not read.

    Attributes
    ----------
    epoch, position : int
        Where the sample is in the order: the epoch, and the position among the samples of all
        ranks.
    id : int
        The number of the sample, as in ``Batch.ids``.
    replacement : int or None
        The number of the sample that was read instead; None if the sample was left out.
    reason : str
        The error.
    """

    epoch: int
    position: int
    id: int
    replacement: int | None
    reason: str


class UserError(Exception):
    """Carries an exception of a user's function to the loop, which knows the item's samples.

    Parameters
    ----------
    name : str
        The name of the function in messages.
    error : Exception
    """

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(name, error)
        self.name, self.error = name, error


class FailureRecord:
    """The failures of an iteration, in this process and in its workers.

    Parameters
    ----------
    max_errors : int, optional
        Maximum number of failures; one more makes `add` raise. By default there is no maximum.
    """

    def __init__(self, max_errors: int | None = None) -> None:
        self._max_errors = max_errors
        import tempfile  # takes 10 ms

        self._own: list[FailedSample] = []
        self._reset(Path(tempfile.gettempdir()) / f"npstream-failures-{uuid.uuid4().hex}")
        self._owner = os.getpid()
        weakref.finalize(self, _delete, self._path, self._owner)

    def _reset(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._has_warned = False

    def __getstate__(self) -> tuple[Any, ...]:
        return self._max_errors, self._path, self._owner, self._own, is_spawning()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._max_errors, path, owner, own, is_worker = state
        if is_worker:
            self._own, self._owner = [], owner
            self._reset(path)
        else:  # a copy, which records its own failures from here on
            FailureRecord.__init__(self, self._max_errors)
            self._own = [*own]

    def add(self, failure: FailedSample, error: BaseException) -> None:
        """Record a failure.

        Raises
        ------
        RuntimeError
            If there are more than `max_errors`.
        """
        failure = failure._replace(reason=failure.reason[:_MAX_REASON])
        if os.getpid() == self._owner:
            with self._lock:
                self._own.append(failure)
        else:
            line = json.dumps(failure).encode() + b"\n"
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
            file = os.open(self._path, flags, 0o600)
            try:
                os.write(file, line)
            finally:
                os.close(file)
        if not self._has_warned:
            self._has_warned = True
            action = "left out" if failure.replacement is None else "replaced"
            warn(
                "sample %d of epoch %d is %s: %s; more of them are not logged, and the attribute "
                "`failures` of the iteration lists all",
                failure.id, failure.epoch, action, failure.reason,
            )  # fmt: skip
        if self._max_errors is not None and (count := len(self.list())) > self._max_errors:
            raise RuntimeError(
                f"{quantity(count, 'sample')} could not be read, more than "
                f"max_errors={self._max_errors}; the last: {failure.reason}"
            ) from error

    def list(self) -> list[FailedSample]:
        """Return the failures so far, also those of workers, in the order of their positions.

        Threads and workers read several batches at once, and record failures in any order.
        """
        own = [*self._own] if os.getpid() == self._owner else []
        # The sort is stable: a replacement that fails follows the sample that it replaces.
        return sorted([*own, *self._of_workers()], key=lambda f: (f.epoch, f.position))

    def _of_workers(self) -> Iterator[FailedSample]:
        with suppress(FileNotFoundError):
            for line in self._path.read_bytes().splitlines():
                yield FailedSample(*json.loads(line))


def _delete(path: Path, owner: int) -> None:
    if os.getpid() == owner:
        path.unlink(missing_ok=True)

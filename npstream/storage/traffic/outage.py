"""Provide `Outage`, which lets the requests of a store wait while the store does not answer."""

from __future__ import annotations

from npstream._core.log import log, warn

__all__ = ["Outage"]

OUTAGE_PAUSE = 4.0
"""The mean pause between two rounds of attempts while a store does not answer, in seconds."""


class Outage:
    """The present outage of a store, if there is one, for all of its requests.

    Parameters
    ----------
    seconds : float
        How long requests wait for the store to answer again, from the start of the outage. With 0
        they do not wait.
    where : str
        The store's URL, for messages.

    Examples
    --------
    >>> outage = Outage(600.0, "s3://bucket")
    >>> outage.extend(60.0)
    60.0
    >>> outage.begin(now=60.0, reason="Connection refused")
    True
    >>> outage.extend(60.0)
    660.0
    >>> outage.end(now=130.0)
    >>> outage.begin(now=200.0, reason="busy"), outage.begin(now=801.0, reason="busy")
    (True, False)
    """

    def __init__(self, seconds: float, where: str) -> None:
        self.seconds = seconds
        self._where = where
        self._start: float | None = None

    def begin(self, now: float, reason: str) -> bool:
        """Begin an outage after a failed request; return True if the request waits for the store.

        A warning is logged when the outage begins, but not for further requests that fail in it.

        Parameters
        ----------
        now : float
            The time in seconds, on the clock of `time.monotonic`.
        reason : str
            Why the request has failed.
        """
        if not self.seconds:
            return False
        if self._start is None:
            self._start = now
            warn(
                "%s: the store does not answer (%s). npstream waits for it, for up to %.0f s "
                "(outage=)",
                self._where, reason, self.seconds,
            )  # fmt: skip
        return now < self._start + self.seconds

    def end(self, now: float) -> None:
        """End the outage, because the store has answered; `now` is a time as for `begin`."""
        if self._start is not None:
            log("%s: the store answers again, after %.0f s", self._where, now - self._start)
            self._start = None

    def extend(self, deadline: float) -> float:
        """Return `deadline`, or the end of the wait for the store if an outage makes it later."""
        start = self._start
        return deadline if start is None else max(deadline, start + self.seconds)

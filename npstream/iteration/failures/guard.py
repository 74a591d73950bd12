"""Provide `SampleGuard`, which reads batches although some of their samples cannot be read.

A sample that cannot be read is left out of its batch, or replaced. The replacement depends only on
the seed, the epoch and the position of the sample. So it is the same for any number of ranks and
workers, and in a resumed run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from npstream._core.arguments import quantity
from npstream.errors import FormatError, IntegrityError, MissingDependencyError
from npstream.iteration.failures.record import FailedSample, FailureRecord, UserError
from npstream.orders.permutation import make_key

if TYPE_CHECKING:
    from npstream._core.typing import Bools, Int64
    from npstream.iteration.partition import Partition
    from npstream.reading.gather import Lookup

T = TypeVar("T")

Piece: TypeAlias = "tuple[Int64, Bools, Int64]"
"""Three arrays for samples that are read together: ids, a mask, and epoch positions. The mask is
True for samples that only fill up a batch."""

READ_ERRORS = (FormatError, IntegrityError)
"""The errors of samples whose stored bytes are damaged. Errors of a store are not among them."""

NOT_OF_A_SAMPLE = (MissingDependencyError, MemoryError)
"""Errors that a function of a sample may raise although the sample is not the cause."""

NEIGHBORHOOD = 1 << 12
"""Replacements are taken from a block of this number of consecutive epoch positions.

The block contains the failed position. On one node, the chunks of the block are needed anyway.
"""

MAX_ATTEMPTS = 64
"""Maximum number of replacements that are tried for a sample."""

_FIRST_LEVEL = 16
"""The `level` in `make_key` of the first replacement that is tried."""


class SampleGuard:
    """Reads pieces, and leaves out or replaces samples that fail.

    Parameters
    ----------
    replaces : bool
        True to replace samples, False to leave them out.
    seed, epoch : int
    part : Partition
        The rank's part of the epoch.
    look_up : callable
        Returns the lookup of rows.
    record : FailureRecord
        Receives the failures.
    """

    def __init__(
        self,
        replaces: bool,
        seed: int,
        epoch: int,
        part: Partition,
        look_up: Callable[[Int64], Lookup],
        record: FailureRecord,
    ) -> None:
        self._replaces, self._seed, self._epoch = replaces, seed, epoch
        self._part, self._look_up, self._record = part, look_up, record
        # All epoch positions. `part.size` does not count those in gaps.
        self._size = part.size + sum(stop - start for start, stop in part.gaps)

    def read_ahead(
        self,
        open_ahead: Callable[[Iterator[Piece]], Iterator[tuple[Piece, Lookup]]],
        pieces: Iterator[Piece],
    ) -> Iterator[tuple[Piece, Lookup]]:
        """Yield pieces and their lookups. After an error of the read-ahead, begin a new one.

        The pieces that the failed read-ahead had taken are yielded without read-ahead.

        Parameters
        ----------
        open_ahead : callable
            Begins to read pieces ahead.
        pieces : iterator
        """
        window: deque[Piece] = deque()  # taken by the read-ahead, and not yielded yet
        while True:
            try:
                for piece, lookup in open_ahead(_recorded(pieces, window)):
                    window.popleft()
                    yield piece, lookup
                return
            except READ_ERRORS:
                failed, window = window, deque()
            for piece in failed:
                yield piece, self._look_up(piece[0])

    def read(self, read: Callable[[Piece, Lookup], T], piece: Piece, lookup: Lookup) -> T:
        """Read a piece without the samples that fail, or with their replacements.

        Parameters
        ----------
        read : callable
            Reads a piece. It raises one of `READ_ERRORS` if a sample is damaged.
        piece : Piece
        lookup : Lookup
            The lookup of the samples in the piece.
        """
        return GuardedPiece(self, piece).read(read, lookup)

    def look_up(self, piece: Piece) -> Lookup:
        """Return the lookup of the samples in a piece."""
        return self._look_up(piece[0])

    def replacement(self, position: int, attempt: int) -> int | None:
        """Return the sample that replaces the sample at `position`.

        Each `attempt` draws a position from the neighborhood. Return None if the position has no
        sample.
        """
        start = position - position % NEIGHBORHOOD
        neighbors = min(start + NEIGHBORHOOD, self._size) - start - 1
        if not neighbors:
            return None
        key = make_key(self._seed, self._epoch, position, _FIRST_LEVEL + attempt)
        candidate = start + key % neighbors
        candidate += candidate >= position
        row = int(self._part.rows(np.array([candidate]))[0])
        return row if row >= 0 else None

    @property
    def replaces(self) -> bool:
        """Whether samples are replaced, and not left out."""
        return self._replaces

    def record(self, sample: int, position: int, new: int | None, error: BaseException) -> None:
        """Record a failure."""
        reason = str(error) or type(error).__name__
        if not isinstance(error, READ_ERRORS):
            reason = f"{type(error).__name__}: {error}"
        self._record.add(FailedSample(self._epoch, position, sample, new, reason), error)


class GuardedPiece:
    """A piece whose failed samples are left out or replaced, one after the other.

    Parameters
    ----------
    guard : SampleGuard
    piece : Piece
        The samples to read. The attribute changes when samples fail.
    """

    def __init__(self, guard: SampleGuard, piece: Piece) -> None:
        self._guard, self.piece = guard, piece
        self._attempts: dict[int, int] = {}  # row -> replacements that were tried

    def read(self, read: Callable[[Piece, Lookup], T], lookup: Lookup | None = None) -> T:
        """Read the piece; leave out or replace the samples that fail."""
        while True:
            try:
                return read(self.piece, lookup or self._guard.look_up(self.piece))
            except READ_ERRORS:
                failed = self._find_failed(read)
            lookup = None
            if not failed:  # the samples can be read, so the error may have passed
                return read(self.piece, self._guard.look_up(self.piece))
            self.mend(failed)

    def mend(self, failed: Mapping[int, BaseException]) -> None:
        """Leave out or replace samples, given the error of each failed row of the piece.

        Raises
        ------
        RuntimeError
            If no replacement can be read, or if there are more failures than `max_errors`.
        Exception
            An error of `failed` that does not come from a sample.
        """
        for error in failed.values():
            if isinstance(error, NOT_OF_A_SAMPLE) or not isinstance(error, Exception):
                raise error
        ids, repeated, positions = self.piece
        if not self._guard.replaces:
            for row, error in failed.items():
                self._guard.record(int(ids[row]), int(positions[row]), None, error)
            keep = np.ones(len(ids), bool)
            keep[list(failed)] = False
            self.piece = ids[keep], repeated[keep], positions[keep]
            return
        ids = ids.copy()
        for row, error in failed.items():
            sample, position = int(ids[row]), int(positions[row])
            ids[row] = self._next_replacement(row, sample, position, error)
            self._guard.record(sample, position, int(ids[row]), error)
        self.piece = ids, repeated, positions

    def transformed(
        self,
        make: Callable[[GuardedPiece], list[Any]],
        transform: Callable[[Any], Any],
    ) -> Iterator[Any]:
        """Yield the transformed samples of the piece; replace those whose transform raises.

        The guard must replace samples, not leave them out.

        Parameters
        ----------
        make : callable
            Returns the samples of a piece.
        transform : callable
            Takes a sample, and raises UserError if a user's function raises.
        """
        samples = make(self)
        for row, sample in enumerate(samples):
            while True:
                try:
                    result = transform(sample)
                except UserError as error:
                    sample = self._replace(row, make, error.error)
                else:
                    break
            yield result

    def _replace(
        self, row: int, make: Callable[[GuardedPiece], list[Any]], error: BaseException
    ) -> Any:
        """Return the sample that replaces the one of a row."""
        self.mend({row: error})
        ids, repeated, positions = self.piece
        span = slice(row, row + 1)
        single = GuardedPiece(self._guard, (ids[span], repeated[span], positions[span]))
        single._attempts[0] = self._attempts[row]
        (sample,) = make(single)
        ids[row] = single.piece[0][0]  # `make` may have replaced the sample again
        self._attempts[row] = single._attempts[0]
        return sample

    def _next_replacement(self, row: int, sample: int, position: int, error: BaseException) -> int:
        for attempt in range(self._attempts.get(row, 0), MAX_ATTEMPTS):
            new = self._guard.replacement(position, attempt)
            if new is not None and new != sample:
                self._attempts[row] = attempt + 1
                return new
        raise RuntimeError(
            f"sample {sample} and {quantity(MAX_ATTEMPTS, 'replacement')} of its position "
            f"{position} cannot be read: look at the data with npstream verify, or leave rows out "
            "with valid="
        ) from error

    def _find_failed(self, read: Callable[[Piece, Lookup], Any]) -> dict[int, BaseException]:
        """Return the errors of single rows, found by bisection."""
        failed: dict[int, BaseException] = {}
        spans = [(0, len(self.piece[0]))]
        while spans:
            start, stop = spans.pop()
            ids, repeated, positions = self.piece
            part = ids[start:stop], repeated[start:stop], positions[start:stop]
            try:
                read(part, self._guard.look_up(part))
            except READ_ERRORS as part_error:
                middle = (start + stop) // 2
                if stop - start == 1:
                    failed[start] = part_error
                else:
                    spans += [(middle, stop), (start, middle)]
        return failed


def _recorded(pieces: Iterator[Piece], window: deque[Piece]) -> Iterator[Piece]:
    """Yield pieces, and append each to `window` before."""
    while True:
        try:
            piece = next(pieces)
        except StopIteration:
            return
        except READ_ERRORS as error:  # the order itself cannot be read
            raise RuntimeError(f"the order of samples cannot be computed: {error}") from error
        window.append(piece)
        yield piece

"""Provide `RankEpochs`: one rank's part of each epoch, and its states.

Tested in tests/iteration/test_iteration.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from npstream._core.arguments import quantity
from npstream._core.log import warn
from npstream.iteration.counter import EpochCounter
from npstream.iteration.ranks import (
    Ranks,
    detect_ranks,
    make_ranks,
    this_worker,
    torch_ranks,
    unread_launcher_warning,
)

if TYPE_CHECKING:
    from npstream.iteration.counter import EpochCursor
    from npstream.iteration.epochs import AnyEpochs
    from npstream.iteration.iterator import EpochProgress
    from npstream.iteration.partition import Partition
    from npstream.iteration.settings import IterationSettings

_RANKS, _CHUNKS, FORMER_VERSION = 0, 1, 2
"""Numbers of the warnings that an iteration gives only once, also with workers."""


class RankEpochs:
    """One rank's part of each epoch; the rank is detected on first use.

    Parameters
    ----------
    epochs : AnyEpochs
    settings : IterationSettings
    """

    def __init__(self, epochs: AnyEpochs, settings: IterationSettings) -> None:
        # `_epochs` are those of a former version of the dataset if a loaded state belongs to it.
        self._epochs = self._newest_epochs = epochs
        self._settings = settings
        self._counter = EpochCounter(settings.epoch, epochs.context_bytes)
        self._given_ranks: Ranks | None = None
        if settings.rank is not None:
            self._given_ranks = make_ranks(settings.rank, settings.world, settings.ranks_per_node)
        self._detected_ranks: Ranks | None = None

    def _resolve(self) -> Ranks:
        """Return the ranks; raise RuntimeError if they changed since they were detected."""
        if self._given_ranks is not None:
            return self._given_ranks
        if self._detected_ranks is None:
            self._detected_ranks = detect_ranks(self._settings.ranks_per_node)
            message = unread_launcher_warning(self._detected_ranks)
            if message and self._is_first_warning(_RANKS):
                warnings.warn(message, stacklevel=4)
            self._warn_of_shared_chunks(
                self._epochs.merge_replicas(self._detected_ranks, self._settings.replication)
            )
        elif (current := torch_ranks()) is not None and current != self._detected_ranks[:2]:
            raise RuntimeError(
                f"(rank, world) was {self._detected_ranks[:2]} when this was first used, and "
                f"torch.distributed says {current}: call init_process_group before, or give rank= "
                "and world="
            )
        return self._detected_ranks

    def _warn_of_shared_chunks(self, ranks: Ranks) -> None:
        """Warn once if several nodes read the same chunks, and another number of lanes avoids it.

        `ranks` are merged over replicas.
        """
        nodes = ranks.world // ranks.per_node
        if (times := self._epochs.nodes_per_chunk(nodes)) > 1 and self._is_first_warning(_CHUNKS):
            warnings.warn(
                f"each chunk is fetched {times} times, because {quantity(nodes, 'node')} do not "
                "divide the number of lanes: give npstream.Shuffle(lanes=...) a multiple",
                stacklevel=5,
            )

    def _is_first_warning(self, number: int) -> bool:
        """Return True if this process gives the warning: the main process or worker 0, once."""
        return this_worker()[0] == 0 and self._counter.is_first_warning(number)

    def _merged_ranks(self) -> Ranks:
        return self._epochs.merge_replicas(self._resolve(), self._settings.replication)

    def _part(self, cursor: EpochCursor) -> Partition:
        return self._part_of(cursor, self._merged_ranks(), self._epochs)

    def _part_of(self, cursor: EpochCursor, ranks: Ranks, epochs: AnyEpochs) -> Partition:
        size, global_size = self._settings.batch_size, self._settings.global_batch_size
        if global_size is not None:
            if global_size % ranks.world or size not in (None, global_size // ranks.world):
                raise ValueError(
                    f"global_batch_size={global_size} with batch_size={size}: expected "
                    f"{ranks.world} times the batch_size, for {quantity(ranks.world, 'rank')}"
                )
            size = global_size // ranks.world
        return epochs.part(cursor, ranks, size or 1, self._settings.last)

    def _encode_state(self, cursor: EpochCursor) -> dict[str, Any]:
        return self._epochs.state(cursor, self._merged_ranks())

    def _decode_state(self, state: Mapping[str, Any]) -> EpochCursor:
        ranks = self._merged_ranks()
        try:
            epochs, cursor = self._newest_epochs, self._newest_epochs.load_cursor(state, ranks)
        except ValueError as error:
            former = self._former_epochs(state, error)
            if former is None:
                raise
            epochs, cursor = former, former.load_cursor(state, ranks)
        self._part_of(cursor, ranks, epochs)  # raises if the batches do not fit
        self._epochs = epochs
        return cursor

    def _former_epochs(self, state: Mapping[str, Any], error: ValueError) -> AnyEpochs | None:
        """Return the epochs of the former version of the dataset to which a state belongs.

        None if there is no such version. `error` is the error of loading the state into the newest
        version.
        """
        return None

    def _warn_unfinished(self, progress: EpochProgress) -> None:
        """Warn that this run does not read the rest of an epoch, but a resumed run would."""
        message = (
            f"epoch {progress.cursor.epoch} was left after {progress.position:,} of "
            f"{quantity(progress.part.size, 'sample')}, where a state was saved: a run that "
            "resumes from this state reads the rest of the epoch, but this run begins another epoch"
        )
        if self._epochs.epoch_size_keeps_order:
            message += f". To have epochs end there, give epoch_size={progress.position}"
            warnings.warn(message, stacklevel=5)
        else:
            # This is only logged: runs of Streaming also leave epochs early, and epoch_size would
            # change the order.
            warn("%s", message)

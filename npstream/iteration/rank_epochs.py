"""The epochs of one rank: its part of each, and states of them.

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
    find_ranks,
    make_ranks,
    other_launcher,
    this_worker,
    torch_ranks,
)

if TYPE_CHECKING:
    from npstream.iteration.counter import EpochPlace
    from npstream.iteration.epochs import AnyEpochs
    from npstream.iteration.iterator import Run
    from npstream.iteration.partition import Partition
    from npstream.iteration.settings import IterationSettings

_RANKS, _CHUNKS = 0, 1
"""Warnings that are given once for an iteration: of ranks, and of chunks that nodes share."""


class RankEpochs:
    """One rank's part of each epoch; the rank is looked up when it is first needed.

    Parameters
    ----------
    epochs : AnyEpochs
    settings : IterationSettings
    """

    def __init__(self, epochs: AnyEpochs, settings: IterationSettings) -> None:
        self._epochs, self._settings = epochs, settings
        self._counter = EpochCounter(settings.epoch, epochs.context_bytes)
        self._given: Ranks | None = None
        if settings.rank is not None:
            self._given = make_ranks(settings.rank, settings.world, settings.ranks_per_node)
        self._found: Ranks | None = None

    def _resolve(self) -> Ranks:
        """Return the rank and the number of ranks; once found, they may not change."""
        if self._given is not None:
            return self._given
        if self._found is None:
            self._found = find_ranks(self._settings.ranks_per_node)
            if (text := other_launcher(self._found)) and self._is_first_to_say(_RANKS):
                warnings.warn(text, stacklevel=4)
            self._warn(self._epochs.sharing(self._found, self._settings.replication))
        elif (now := torch_ranks()) is not None and now != self._found[:2]:
            raise RuntimeError(
                f"(rank, world) was {self._found[:2]} when this was first used, and "
                f"torch.distributed says {now}: call init_process_group before, or give rank= and "
                "world="
            )
        return self._found

    def _warn(self, shared: Ranks) -> None:
        """Say, in one of several workers, that nodes read the same chunks, where they need not."""
        nodes = shared.world // shared.per_node
        if (times := self._epochs.shared_chunks(nodes)) > 1 and self._is_first_to_say(_CHUNKS):
            warnings.warn(
                f"each chunk is fetched {times} times, as {quantity(nodes, 'node')} do not divide "
                "the number of lanes: give npstream.Shuffle(lanes=...) a multiple",
                stacklevel=5,
            )

    def _is_first_to_say(self, number: int) -> bool:
        """Return whether a warning is to be given: once, also if workers come to it, too."""
        return this_worker()[0] == 0 and self._counter.say_once(number)

    def _sharing(self) -> Ranks:
        return self._epochs.sharing(self._resolve(), self._settings.replication)

    def _part(self, place: EpochPlace) -> Partition:
        return self._part_of(place, self._sharing(), self._epochs)

    def _part_of(self, place: EpochPlace, ranks: Ranks, epochs: AnyEpochs) -> Partition:
        size, whole = self._settings.batch_size, self._settings.global_batch_size
        if whole is not None:
            if whole % ranks.world or size not in (None, whole // ranks.world):
                raise ValueError(
                    f"global_batch_size={whole} with batch_size={size}: expected "
                    f"{ranks.world} times that, for as many ranks"
                )
            size = whole // ranks.world
        return epochs.part(place, ranks, size or 1, self._settings.last)

    def _state_of(self, place: EpochPlace) -> dict[str, Any]:
        return self._epochs.state(place, self._sharing())

    def _place_of(self, state: Mapping[str, Any]) -> EpochPlace:
        place = self._epochs.place(state, self._sharing())
        self._part(place)  # says what does not fit
        return place

    def _warn_of_left(self, run: Run) -> None:
        text = (
            f"epoch {run.place.epoch} was left after {run.position} of "
            f"{quantity(run.part.size, 'sample')}, where a state was saved: a run that goes on "
            "from it reads the rest of the epoch, and this one begins another"
        )
        if self._epochs.can_be_cut:
            text += f". To have epochs end there, give epoch_size={run.position}"
            warnings.warn(text, stacklevel=5)
        else:  # Streaming does so, too, and its orders depend on epoch_size
            warn("%s", text)

"""Provide the methods of datasets that answer questions about views and runs.

Tested in tests/iteration/test_provenance.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from npstream.errors import short_traceback

if TYPE_CHECKING:
    from npstream.iteration.iteration import Iteration
    from npstream.iteration.provenance import Provenance


class ViewMethods:
    """Methods of `Dataset`."""

    __slots__ = ()

    if TYPE_CHECKING:
        iter: Callable[..., Iteration]

    def _run_settings(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of `iter` for rank 0 of a state's run."""
        from npstream.iteration.provenance import settings_of_run

        return settings_of_run(state)

    def provenance(
        self, state: Mapping[str, Any], *, steps: int | Iterable[int], epoch: int | None = None
    ) -> Provenance:
        """Return which samples steps of a run read, from a saved state of the run.

        Nothing is read but the index. Batch sizes and numbers of ranks may have changed in the run:
        the state knows all of them.

        Parameters
        ----------
        state : mapping
            The result of ``state_dict`` of the run, at any later time.
        steps : int or iterable of int
            Numbers of steps (global batches) in the epoch, counted from 0. Steps after the state
            are those that the run would read if it went on in the same way.
        epoch : int, optional
            By default the epoch of the state.

        Returns
        -------
        Provenance
            The samples with their ranks, shards and sources.

        Raises
        ------
        ValueError
            If the state is of another dataset or view, or does not know the step.
        IndexError
            If the epoch has no such step.

        Examples
        --------
        >>> ds = getfixture("example")
        >>> batches = ds.iter(0, 1, batch_size=1, shuffle=True)
        >>> [batch.ids.tolist() for batch in batches]
        [[2], [0], [1]]
        >>> ds.provenance(batches.state_dict(), epoch=0, steps=1)
        <Provenance: 1 sample>
          steps  ranks  ids  repeated  shards  rows            files
              1      0    0     False       0     0  shard.00000.mds
        """
        with short_traceback:
            iteration = self.iter(**self._run_settings(state))
            iteration.load_state_dict(state)
            return iteration.samples_of(steps, epoch=epoch)

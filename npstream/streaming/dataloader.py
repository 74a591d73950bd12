"""Provide `StreamingDataLoader`, torch's DataLoader with the states of Streaming's DataLoader.

Tested in tests/streaming/test_states.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from npstream.streaming.dataset import StreamingDataset
from npstream.streaming.position import detect_world
from npstream.torch import TorchDataLoader


class StreamingDataLoader(TorchDataLoader[Any]):
    """Torch's DataLoader, which counts the samples that it yields.

    Parameters
    ----------
    *args, **kwargs : Any
        As for ``torch.utils.data.DataLoader``. `batch_size` must be that of the dataset.

    Examples
    --------
    >>> path = str(getfixture("tmp_path"))
    >>> report = npstream.write(path, {"x": np.arange(10)})
    >>> loader = StreamingDataLoader(StreamingDataset(local=path, batch_size=4), batch_size=4)
    >>> for batch in loader:
    ...     print(batch["x"].tolist(), loader.state_dict()["sample_in_epoch"])
    [0, 1, 2, 3] 4
    [4, 5, 6, 7] 8
    [8, 9] 10
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_samples_yielded = 0

    def _get_batch_size(self, batch: Any) -> int:
        """Return the number of samples in a batch; subclasses of Streaming's class override it."""
        if isinstance(batch, Mapping):
            for value in batch.values():
                return len(value)
            raise ValueError("the batch is empty: its samples cannot be counted")
        return len(batch) if hasattr(batch, "dtype") else len(batch[0])

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.num_samples_yielded = 0
        for batch in super().__iter__():
            self.num_samples_yielded += self._get_batch_size(batch)
            yield batch

    def state_dict(self) -> dict[str, Any] | None:
        """Return a state from which to resume after the last yielded batch.

        Returns
        -------
        dict or None
            None if the dataset is not a StreamingDataset.

        Examples
        --------
        >>> path = str(getfixture("tmp_path"))
        >>> report = npstream.write(path, {"x": np.arange(10)})
        >>> loader = StreamingDataLoader(StreamingDataset(local=path, batch_size=4), batch_size=4)
        >>> loader.state_dict()["epoch"]
        -1
        """
        if not isinstance(self.dataset, StreamingDataset):
            return None
        world, _ = detect_world(self.dataset.replication)
        return self.dataset.state_dict(self.num_samples_yielded * world.ranks, False)

    def load_state_dict(self, obj: Mapping[str, Any]) -> None:
        """Let the next loop begin at a state.

        Parameters
        ----------
        obj : mapping
            The result of `state_dict`.

        Examples
        --------
        >>> path = str(getfixture("tmp_path"))
        >>> report = npstream.write(path, {"x": np.arange(10)})
        >>> loader = StreamingDataLoader(StreamingDataset(local=path, batch_size=4), batch_size=4)
        >>> first = next(iter(loader))
        >>> again = StreamingDataLoader(StreamingDataset(local=path, batch_size=4), batch_size=4)
        >>> again.load_state_dict(loader.state_dict())
        >>> [batch["x"].tolist() for batch in again]
        [[4, 5, 6, 7], [8, 9]]
        """
        self.num_samples_yielded = 0
        if isinstance(self.dataset, StreamingDataset):
            self.dataset.load_state_dict(obj)

"""Dataset: a lazily loaded array of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from npstream._core.typing import AnyArray, Sample
from npstream.dataset.column import Column
from npstream.dataset.display_methods import DatasetDisplay
from npstream.dataset.order_methods import OrderMethods
from npstream.dataset.statistics_methods import DescriptionMethods
from npstream.dataset.view_methods import ViewMethods
from npstream.errors import (
    ColumnError,
    refuse_assignment,
    refuse_deletion,
    short_traceback,
    shorten,
    stop_iteration_error,
)
from npstream.formats.index import shard_table
from npstream.indexing.columns import raise_if_column_names
from npstream.indexing.selection import Selection
from npstream.reading import load as reading
from npstream.reading.batch import Batch
from npstream.reading.cost_limit import check_cost

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from npstream.iteration.epochs import AnyEpochs
    from npstream.iteration.iteration import Iteration
    from npstream.iteration.settings import IterationSettings
    from npstream.orders.order import Shuffle
    from npstream.orders.streaming.settings import StreamingShuffle
    from npstream.reading.cost import Cost
    from npstream.reading.images.options import Decode
    from npstream.reading.source import Source
    from npstream.reading.stored import StoredTable
    from npstream.storage.traffic.record import ReadStats

Transform = Callable[[Sample], Any]


class Dataset(DatasetDisplay, ViewMethods["Dataset"], OrderMethods["Dataset"], DescriptionMethods):
    """An array of the samples of an opened dataset, or a lazy view of some of them.

    Made by `npstream.open`. An integer index reads one sample. Any other row index returns a lazy
    view. A name, or a list of names, selects columns. NumPy functions, `load` and iteration read
    the view's data. ``==`` compares identity.

    Examples
    --------
    >>> ds = getfixture("example")
    >>> ds[1]
    {'text': 'one', 'label': np.int64(1)}
    >>> ds[::2]["text"].to_numpy()
    array(['zero', 'two'], dtype=StringDType())
    """

    __slots__ = ("__weakref__", "_names", "_reader", "_selection", "_source", "_transform")

    def __init__(
        self,
        source: Source,
        selection: Selection,
        names: tuple[str, ...],
        transform: Transform | None = None,
    ) -> None:
        self._source, self._selection = source, selection
        self._names, self._transform = names, transform
        self._reader: Callable[[int], Sample] | None = None  # made when the first sample is read

    def _view(self, selection: Selection) -> Dataset:
        return Dataset(self._source, selection, self._names, self._transform)

    def __reduce__(self) -> tuple[Any, ...]:
        from npstream.iteration.pickling import require_importable
        from npstream.iteration.settings import VIEW_TRANSFORM

        transform = require_importable(VIEW_TRANSFORM, self._transform)
        return Dataset, (self._source, self._selection, self._names, transform)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return self._names

    @property
    def dtypes(self) -> dict[str, np.dtype[Any]]:
        """Dtype of each column's elements: StringDType for text, object if NumPy has no dtype."""
        return {name: self[name].dtype for name in self._names}

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the view: ``(len(ds),)``, unless an N-d index array made it."""
        return self._selection.shape

    @property
    def ndim(self) -> int:
        """Number of axes of the view."""
        return len(self._selection.shape)

    @property
    def size(self) -> int:
        """Number of samples in the view."""
        return self._selection.size

    def __len__(self) -> int:
        return len(self._selection)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            raise TypeError(
                f"`in` tests a dataset for the name of a column, got {type(name).__name__}; "
                "to search for a value, use a column, as in `value in ds['name']`"
            )
        return name in self._names

    @property
    def version(self) -> str:
        """Fingerprint of the whole dataset's index, for ``npstream.open(version=)``."""
        return self._source.index.fingerprint()

    def refresh(self, version: str | None = None) -> Dataset:
        """Return this dataset with the samples that were appended since it was opened.

        The samples of this dataset are the first samples of the result, in the same order. Columns
        and transforms stay, and so do the arguments of `npstream.open`. This dataset does not
        change: its views and iterations stay on its version.

        Parameters
        ----------
        version : str, optional
            The version to open, as `version` returns it; it may be older. By default the newest.

        Returns
        -------
        Dataset
            This dataset itself if it has that version.

        Raises
        ------
        ValueError
            If this is a view of some of the samples, or a mixture. If other samples have replaced
            those of this dataset.
        StorageError
            If that version was not kept.

        Examples
        --------
        >>> path = getfixture("tmp_path") / "numbers"
        >>> report = npstream.write(path, {"x": [0, 1]})
        >>> ds = npstream.open(path)
        >>> report = npstream.write(path, {"x": [2]}, mode="a")
        >>> newest = ds.refresh()
        >>> len(ds), newest["x"].load()
        (2, array([0, 1, 2]))
        >>> len(newest.refresh(ds.version))
        2
        """
        from npstream.joins.versions import refreshed_source

        with short_traceback:
            source = refreshed_source(self._source, self._selection, version)
            if source is self._source:
                return self
            return Dataset(
                source, Selection.all(source.index.samples), self._names, self._transform
            )

    @property
    def shards(self) -> AnyArray:
        """The shards of the whole dataset.

        Returns
        -------
        ndarray, shape (shards,)
            Structured array: ``name`` (str), and as int64 ``start`` (id of the first sample),
            ``samples`` (their number) and ``bytes`` (uncompressed size).
        """
        return shard_table(self._source.index)

    def locate(self, index: Any) -> tuple[Any, Any]:
        """Return the shard of each selected sample, and the sample's row in the shard.

        Parameters
        ----------
        index : int, slice or array_like
            Rows of this view.

        Returns
        -------
        shard, row : int or ndarray of int64
            Number of the shard, and position of the sample in that shard; both count from 0.

        Examples
        --------
        >>> ds = getfixture("example")
        >>> ds.locate(1)
        (0, 1)
        """
        selected = self._selection.select(index)
        if isinstance(selected, int):
            return self._source.locate(selected)
        return self._source.locate(selected.ids().reshape(selected.shape))

    # Indexing

    @overload
    def __getitem__(self, index: str) -> Column: ...
    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: Any) -> Dataset: ...
    def __getitem__(self, index: Any) -> Any:
        try:
            if type(index) is not int:  # the checks would slow down the read of a single sample
                if isinstance(index, str):
                    return self._column(index)
                if isinstance(index, list) and any(isinstance(name, str) for name in index):
                    return self._project(index)
            selected = self._selection.select(index)
            if isinstance(selected, int):
                return self._sample(selected)
        except Exception as error:
            if isinstance(error, IndexError):
                raise_if_column_names(index)
            shorten(error)
            raise
        return Dataset(self._source, selected, self._names, self._transform)

    __setitem__ = refuse_assignment
    __delitem__ = refuse_deletion

    def __getitems__(self, rows: list[int]) -> list[Any]:
        """Return several samples at once; ``torch.utils.data.DataLoader(ds)`` calls this."""
        return list(self[np.asarray(rows, np.int64)])

    def _column(self, name: str) -> Column:
        if name not in self._names:
            if name in self._source.column_errors:
                self._source.field(name)  # raises an error that says which shards lack the column
            raise ColumnError(name, self._names)
        return Column._from_plan(*self._source.column(name), self._selection)

    def _project(self, names: Sequence[str]) -> Dataset:
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"a list is all column names or all rows, not both: {name!r}")
            self._column(name)  # only to raise if there is no such column
        if len(set(names)) != len(names):
            raise ValueError(f"a column is listed twice in {list(names)}")
        return self._replace(tuple(names), self._transform)

    def _replace(
        self, names: tuple[str, ...], transform: Transform | None, source: Any = None
    ) -> Dataset:
        """Return a view of the same rows with these columns and this transform."""
        return Dataset(source or self._source, self._selection, names, transform)

    def _sample(self, sample_id: int) -> Any:
        reader = self._reader
        if reader is None:
            reader = self._reader = self._source.reader(self._names)
        values = reader(sample_id)
        try:
            return values if self._transform is None else self._transform(values)
        except StopIteration as error:
            from npstream.iteration.settings import VIEW_TRANSFORM

            raise stop_iteration_error(VIEW_TRANSFORM) from error

    def __iter__(self) -> Iterator[Any]:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        if self.ndim > 1:
            return map(self.__getitem__, range(len(self)))
        samples = reading.iterate_samples(self._source, self._selection, self._names)
        if self._transform is None:
            return samples
        from npstream.iteration.settings import VIEW_TRANSFORM

        return reading.apply_transform(self._transform, samples, VIEW_TRANSFORM)

    # Reading

    def load(self, out: Mapping[str, Any] | None = None, *, decode: Decode = False) -> Batch:
        """Read all columns of all samples.

        Parameters
        ----------
        out : mapping of str to array_like, optional
            Arrays or tensors to fill and return; tensors may be in pinned memory. They need the
            shape and dtype of their columns, whose values must have a fixed size. By default, new
            arrays are returned.
        decode : bool, str, sequence of str or mapping, default: False
            Columns of images to decode: True for all, names, or options by name, such as
            ``{"image": {"resize": 224}}``; `npstream.Column.decode` explains the options.

        Returns
        -------
        Batch
            The shape of an array is the view's shape followed by the shape of a value. A Ragged has
            a row for each sample. A decoded column is an array, or a list of arrays if images
            differ in shape.

        Raises
        ------
        MemoryError
            Before reading, if the result needs more memory than is free.
        ValueError, TypeError
            If an array of `out` does not have the column's shape or dtype.

        Examples
        --------
        >>> ds = getfixture("example")
        >>> ds[[2, 0]].load()["label"]
        array([2, 0])
        """
        source, selection = self._source, self._selection
        try:  # `with short_traceback` would take longer
            ids, shape = selection.ids(), selection.shape
            plan = source.plan(self._names)
            if decode:
                from npstream.reading.images.columns import load_decoded

                columns, encodings = load_decoded(source, plan, ids, shape, out, decode)
            else:
                columns = reading.load(source, plan, ids, shape, out)
                encodings = plan.encodings
            if len(shape) != 1:
                ids = ids.reshape(shape)
            return Batch(columns, ids, encodings=encodings)
        except BaseException as error:
            shorten(error)
            raise

    def take(
        self,
        indices: ArrayLike,
        axis: int | None = None,
        out: Mapping[str, Any] | None = None,
        mode: str = "raise",
    ) -> Any:
        """Read samples: ``ds[indices].load(out)``, with the signature of `numpy.take`.

        Parameters
        ----------
        indices : array_like of int
            Rows of the view. A single integer returns a sample instead of a Batch.
        axis : int, optional
            0, or None for the ravelled view. The two differ only for an N-d view.
        out : mapping of str to array_like, optional
            Arrays to fill, as for `load`.
        mode : {"raise", "wrap", "clip"}, default: "raise"
            How to treat an index that is out of bounds.

        Returns
        -------
        Batch or dict
            For a single integer, a dict, or the result of the view's transform.

        Raises
        ------
        IndexError
            If an index is out of bounds, and `mode` is "raise".
        ValueError
            If the axis or mode does not exist.
        TypeError
            If the indices are not integers, or `out` is given with a single integer.

        Examples
        --------
        >>> ds = getfixture("example")
        >>> ds.take([5, -1], mode="clip")["label"]
        array([2, 0])
        """
        with short_traceback:
            view = self
            if axis is None:
                view = self.ravel()
            elif normalize_axis_index(axis, self.ndim):
                raise ValueError(f"axis={axis}: samples are taken along axis 0, or None")
            if isinstance(selected := view[reading.apply_mode(indices, len(view), mode)], Dataset):
                return selected.load(out)
            if out is not None:
                raise TypeError("out= takes arrays of several samples, but indices is one integer")
            return selected

    def explain(self) -> Cost:
        """Return the cost of `load` with the present cache, such as the bytes to download.

        Returns
        -------
        Cost

        Examples
        --------
        >>> getfixture("example").explain().nbytes  # a local dataset needs no download
        0
        """
        from npstream.reading.cost import explain

        return explain(self._source, self._selection, self._source.plan(self._names))

    @property
    def stats(self) -> ReadStats:
        """Counts and times of this process's reads of the whole dataset from object stores.

        Counting begins when the dataset is opened. Each worker process counts its own reads.

        Examples
        --------
        >>> getfixture("example").stats.requests  # a local dataset needs none
        0
        """
        return self._source.read_stats()

    def prefetch(self, *, pin: bool = False) -> None:
        """Fetch all chunks of this view into the cache.

        Parameters
        ----------
        pin : bool, default: False
            Whether the cache keeps the chunks until `unpin`. They are kept for all processes, even
            after this process ends. The cache pins whole files. A file holds one chunk if the
            dataset exceeds the cache's limit; otherwise it holds one shard.

        Raises
        ------
        ValueError
            If the cache cannot hold all these chunks at once. With `pin`, also if it cannot hold
            them together with everything else that is pinned.
        StorageError
            With `pin`, if the cache is not writable, or other reads fill it meanwhile.

        Examples
        --------
        >>> getfixture("example")[:2].prefetch()  # a local dataset needs no download
        >>> getfixture("example")[:2].prefetch(pin=True)
        >>> getfixture("example")[:2].unpin()
        """
        from npstream.reading.cost import prefetch

        prefetch(self._source, self._selection, self._source.plan(self._names), pin)

    def unpin(self) -> None:
        """Let the cache evict the chunks of this view again, which `prefetch` has pinned.

        Chunks that other pinned views share with this view are unpinned, too.

        Examples
        --------
        >>> getfixture("example")[:2].unpin()  # a local dataset is not cached
        """
        from npstream.reading.cost import unpin

        unpin(self._source, self._selection, self._source.plan(self._names))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> AnyArray:
        with short_traceback:
            if copy is False:
                raise ValueError("Unable to avoid copy while creating an array as requested.")
            source, plan, ids = self._source, self._source.plan(self._names), self._selection.ids()
            check_cost(source, self._selection, "an array of this view", sample_plan=plan)
            table = reading.load_structured(source, plan, ids, self.shape)
            return table if dtype is None else table.astype(dtype, copy=False)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        if self.ndim != 1:
            raise ValueError(f"a view of shape {self.shape} is not a table: take its ravel()")
        from npstream.reading.arrow_stream import record_batches

        reader = record_batches(self._source, self._selection, self._names)
        return reader.__arrow_c_stream__(requested_schema)

    # Views

    def ravel(self) -> Dataset:
        """Return the samples of an N-d view as a 1-d view.

        Returns
        -------
        Dataset
            The view itself if it has one axis.

        Examples
        --------
        >>> getfixture("example")[np.array([[0, 1], [2, 0]])].ravel().shape
        (4,)
        """
        return self if self.ndim == 1 else self._view(self._selection.ravel())

    def iter(
        self,
        rank: int | None = None,
        world: int | None = None,
        *,
        batch_size: int | None = None,
        global_batch_size: int | None = None,
        batched: bool = True,
        shuffle: bool | str | Shuffle | StreamingShuffle = False,
        seed: int = 0,
        epoch: int = 0,
        epoch_size: int | float | str | None = None,
        last: str = "repeat",
        ranks_per_node: int | None = None,
        replication: int = 1,
        decode: Decode = False,
        transform: Callable[[Any], Any] | None = None,
        threads: int | None = None,
        prefetch: int | str | None = None,
        transform_workers: int = 0,
        to: str | None = None,
        device: Any = None,
        gather: str | None = None,
        valid: str | ArrayLike | None = None,
        balance: str | ArrayLike | None = None,
        buckets: int | None = None,
        on_error: str = "raise",
        max_errors: int | None = None,
    ) -> Iteration:
        """Return an iterable over this rank's part of the view, epoch after epoch.

        It yields Batches. If no batch size is given, it yields samples. It can be iterated over
        repeatedly, pickled, and passed to ``torch.utils.data.DataLoader``. ``load_state_dict``
        resumes it.

        Parameters
        ----------
        rank, world : int, optional
            Number of this process among the processes that share the view, and their count. By
            default those of ``torch.distributed`` if it is initialized, else RANK and WORLD_SIZE of
            the environment, else 0 and 1. Defaults are looked up on the first use that needs them.
        batch_size : int, optional
            Samples of this rank in a batch. By default, samples are yielded, not batches.
        global_batch_size : int, optional
            Samples of all ranks in a batch, a multiple of `world`, instead of `batch_size`. If
            `world` changes, batches over all ranks keep their size and their samples.
        batched : bool, default: True
            If False, yield samples even with `batch_size`, so that a DataLoader with the same batch
            size makes the batches. Each worker then reads runs of `batch_size` samples.
        shuffle : bool, Shuffle, str or StreamingShuffle, default: False
            True gives each epoch its own random order. False keeps the view's order. A
            `npstream.Shuffle` or `npstream.StreamingShuffle` sets how to shuffle. "py1e", "py1s",
            "py1br", "py2s" and "naive" are orders of MosaicML Streaming, for whole datasets only.
        seed : int, default: 0
            Seed of the orders, any integer. Orders of Streaming do not use it.
        epoch : int, default: 0
            Number of the first epoch.
        epoch_size : int, float or str, optional
            Samples in an epoch; by default the view's size. May be text such as "100k", " 64 M",
            "1.5B" or "2T", or a float such as 5e5, rounded down. Each epoch continues where the
            previous one ended. The order changes after all samples of the view have been read. With
            an order of Streaming, each epoch selects its samples as Streaming does.
        last : {"repeat", "drop", "short"}, default: "repeat"
            How to treat the last batch if samples are too few for a full batch on every rank.
            "repeat" fills it with the first samples of the epoch, marked in ``batch.repeated``
            (single samples carry no mark). "drop" omits it, as torch's ``drop_last=True`` does.
            With "repeat" and "drop", all ranks have the same number of batches of the same size.
            "short" reads each sample once, so ranks may differ in the number and size of batches.
            Orders of Streaming accept "repeat" and "drop". They repeat samples only until all ranks
            have the same number, so the last batch may be short.
        ranks_per_node : int, optional
            Ranks on each machine. Ranks of a machine have consecutive numbers. If the number of
            lanes (see `npstream.Shuffle`) is a multiple of the number of machines, machines read
            different chunks, except for a few at the ends of lanes. By default LOCAL_WORLD_SIZE of
            the environment if `rank` is not given, else all ranks.
        replication : int, default: 1
            Number of consecutive ranks that read the same samples, such as the ranks of
            one tensor-parallel group.
        decode : bool, str, sequence of str or mapping, default: False
            Columns of images to decode, in threads, as for `load`.
        transform : callable, optional
            Takes each Batch, or each sample, and returns its replacement. It runs in the thread of
            the loop, unless `threads` is given.
        threads : int, optional
            Threads that read, and apply transforms to, the next batches while the loop uses a
            batch. The order of batches stays the same. 0 reads each batch when the loop asks for
            it. The default is one fewer than this process's processors, but at most 8; these
            threads read, but do not apply transforms. The default is 0 for single samples, in
            workers of a DataLoader, and if an epoch reads less than 4 MiB.
        prefetch : int or str, optional
            Maximum number of batches to make ahead, or their maximum bytes as text such as
            "256MiB". By default two batches for each thread, or two groups if small batches are
            read in groups. All together take at most 256 MiB, and at most an eighth of the free
            memory.
        transform_workers : int, default: 0
            Processes that apply transforms, started with "spawn". The order stays the same.
        to : {"torch"}, optional
            Yield tensors over the memory of the arrays, after transforms. A Ragged becomes a nested
            tensor. By default, arrays.
        device : torch.device, str or int, optional
            Copy the tensors to this device. For CUDA, threads copy through pinned buffers on a side
            stream. The CUDA stream of the loop waits for each copy; the loop itself does not.
        gather : {"device"}, optional
            Let a CUDA device copy the rows of batches from local or cached shards by itself, over
            the bus, if samples have one size. Needs Triton. Batches for which that is impossible
            are read by threads, and a warning says why once. By default, threads read all batches.
        valid : str or array_like of bool, optional
            A flag for each row of the view, or the name of a column of bool. An epoch leaves out
            rows whose flag is False. The others keep the order that they have without `valid`.
        balance : str or array_like of int or float, optional
            The cost of each row of the view, or the name of a column of costs, such as the lengths
            of texts. Each global batch has the samples that it has without `balance`, but they are
            divided among ranks so that all ranks have nearly equal costs. Needs a batch size.
        buckets : int, optional
            With `balance`, sort samples of similar cost into the same batch, so that padding is
            small: this number of consecutive global batches is sorted together, such as 256.
        on_error : {"raise", "skip", "replace"}, default: "raise"
            What to do with a sample whose stored bytes are damaged, whose image cannot be decoded,
            or whose transform raises. "skip" makes its batch shorter. "replace" reads a neighbor in
            the order instead. The choice of the neighbor depends only on the seed, the epoch and
            the position of the sample. Neither changes the number of batches. ``failures`` of the
            result lists these samples. An exception in a transform of a batch is raised.
        max_errors : int, optional
            The number of failed samples after which an error is raised; by default any number.

        Returns
        -------
        Iteration

        Raises
        ------
        ValueError
            If settings contradict each other, or the cache is too small for the order.

        Examples
        --------
        >>> ds = getfixture("example")
        >>> for batch in ds.iter(0, 1, batch_size=2):
        ...     print(batch["label"], batch.ids, batch.repeated)
        [0 1] [0 1] [False False]
        [2 0] [2 0] [False  True]
        """
        from npstream.iteration.settings import IterationSettings

        mask, costs = self._mask_and_costs(valid, balance)
        return self._iterate(
            IterationSettings(
                rank=rank, world=world, batch_size=batch_size, global_batch_size=global_batch_size,
                batched=batched, shuffle=shuffle, seed=seed, epoch=epoch, epoch_size=epoch_size,
                last=last, ranks_per_node=ranks_per_node, replication=replication,
                decode=decode, transform=transform, threads=threads, prefetch=prefetch,
                transform_workers=transform_workers, to=to, device=device, gather=gather,
                valid=mask, balance=costs, buckets=buckets,
                on_error=on_error, max_errors=max_errors,
            )
        )  # fmt: skip

    def _iterate(self, settings: IterationSettings) -> Iteration:
        """Return an iterable over a rank's part of this view."""
        from npstream.iteration.iteration import Iteration

        with short_traceback:
            return Iteration(
                self._source, self._selection, self._names, self._transform, settings,
                self._epochs_for(settings),
            )  # fmt: skip

    def _epochs_for(self, settings: IterationSettings) -> AnyEpochs:
        """Return the epochs of this view, which map positions to samples."""
        from npstream.iteration.epochs import epochs_for

        return epochs_for(self._source, self._selection, settings)

    def _writer_input(self) -> StoredTable | None:
        """Return this view for a writer to copy; None if its samples are transformed."""
        from npstream.reading.stored import stored_table

        is_stored = self._transform is None
        return stored_table(self._source, self._selection, self._names) if is_stored else None

    def close(self) -> None:
        """Release the memory maps and buffers of this dataset and of all its views.

        Reads in progress are finished first. A dataset is also a context manager, which closes it.

        Examples
        --------
        >>> ds = getfixture("example")
        >>> ds.close()
        >>> ds[0]
        Traceback (most recent call last):
        ValueError: ...: the dataset is closed; open it again
        """
        self._source.close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""Provide `Mixture` and `mix`: samples of several datasets, drawn by weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.arguments import integer, name_list, quantity
from npstream.dataset.dataset import Dataset, Transform
from npstream.explore import display
from npstream.indexing.selection import Selection
from npstream.iteration.pickling import require_importable
from npstream.iteration.settings import VIEW_TRANSFORM
from npstream.iteration.state import DatasetFingerprint, ViewFingerprint
from npstream.mixture.shares import MixtureSpec, make_schedule
from npstream.mixture.source import SOURCE, MixedSource
from npstream.orders.order import BlockSize, Shuffle
from npstream.reading.schema import common_columns
from npstream.reading.source import Member

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from npstream.iteration.epochs import AnyEpochs
    from npstream.iteration.iteration import Iteration
    from npstream.iteration.settings import IterationSettings
    from npstream.mixture.epochs import BatchSizes
    from npstream.mixture.shares import Schedule
    from npstream.mixture.stream import EpochOrder
    from npstream.orders.streaming.settings import StreamingShuffle
    from npstream.reading.images.options import Decode


class Mixture(Dataset):
    """Views of several datasets, one after the other, with the weights of these sources.

    Made by `npstream.mix`. A mixture is a Dataset of all samples: the rows of the first source,
    then those of the second, and so on. `iter`, `order` and `shuffle` draw samples by weight. Views
    of a mixture, such as ``mix[::2]``, are Datasets without weights.

    Examples
    --------
    >>> ds = getfixture("example")
    >>> mix({"odd": ds[1::2], "all": ds}, {"odd": 3, "all": 1}).weights
    {'odd': 0.75, 'all': 0.25}
    """

    __slots__ = ("_spec",)

    _source: MixedSource

    def __init__(
        self,
        source: MixedSource,
        selection: Selection,
        names: tuple[str, ...],
        transform: Transform | None,
        schedule: Schedule,
        block: int | None,
    ) -> None:
        super().__init__(source, selection, names, transform)
        self._spec = _make_spec(source, schedule, block)

    def __reduce__(self) -> tuple[Any, ...]:
        spec = self._spec
        transform = require_importable(VIEW_TRANSFORM, self._transform)
        arguments = (self._source, self._selection, self._names, transform)
        return Mixture, (*arguments, spec.schedule, spec.block)

    def _replace(
        self, names: tuple[str, ...], transform: Transform | None, source: Any = None
    ) -> Dataset:
        spec, source = self._spec, source or self._source
        return Mixture(source, self._selection, names, transform, spec.schedule, spec.block)

    def __repr__(self) -> str:
        spec = self._spec
        sources = list(zip(spec.names, spec.sizes, spec.schedule[0][1], strict=True))
        changes = spec.schedule[1][0] if len(spec.schedule) > 1 else None
        return display.mixture_text(
            len(self), self._encodings(), sources, changes, self._preview(display.TEXT_VALUES, 0)
        )

    def _title(self) -> str:
        return display.mixture_title(len(self), len(self._spec.names))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sources."""
        return self._spec.names

    @property
    def weights(self) -> dict[str, float] | list[tuple[int, dict[str, float]]]:
        """Share of each source in the drawn samples, by name; together 1.

        If the shares change during the run, the value is a list of pairs ``(position, shares)``.
        """
        schedule = [
            (position, dict(zip(self.names, shares, strict=True)))
            for position, shares in self._spec.schedule
        ]
        return schedule[0][1] if len(schedule) == 1 else schedule

    def origin(self, index: Any) -> tuple[Any, Any]:
        """Return the sources of samples.

        Parameters
        ----------
        index : int, slice or array_like
            Rows of the mixture.

        Returns
        -------
        source, row : int or ndarray of int64
            Index of the source in `names`, and row of the sample in the source's view.

        Examples
        --------
        >>> ds = getfixture("example")
        >>> mix({"a": ds, "b": ds[::2]}).origin([1, 3, 4])
        (array([0, 1, 1]), array([1, 0, 1]))
        """
        selected = self._selection.select(index)
        rows = self._source.rows
        ids = np.array([selected]) if isinstance(selected, int) else selected.ids()
        source = rows.view_numbers(ids)
        row = ids - rows.bounds[source]
        if isinstance(selected, int):
            return int(source[0]), int(row[0])
        return source.reshape(selected.shape), row.reshape(selected.shape)

    # Drawn samples

    def order(
        self,
        seed: int,
        epoch: int = 0,
        *,
        block: BlockSize = "auto",
        lanes: int | None = None,
        stratified: bool = False,
        batching: str = "random",
        batch_size: int | None = None,
        global_batch_size: int | None = None,
    ) -> EpochOrder:
        """Return the order of a training epoch: a lazy array of row numbers.

        Depending on the weights, an epoch can contain a sample several times, or not at all.

        Parameters
        ----------
        seed : int
            Seed of the order, as in `npstream.Dataset.order`.
        epoch : int, default: 0
            Number of the epoch, as in `npstream.Dataset.order`.
        block : int, str or None, default: "auto"
            Bytes of data to shuffle together. 0 shuffles nothing, and None shuffles all data
            together; see `npstream.Shuffle`.
        lanes : int, optional
            Number of chunk sequences that the order interleaves; see `npstream.Shuffle`.
        stratified : bool, default: False
            Whether the chunks of each source come evenly from all its parts; see
            `npstream.Shuffle`.
        batching : {"random", "stratified", "per_stream", "device_per_stream"}, default: "random"
            How sources are drawn; see `iter`.
        batch_size, global_batch_size : int, optional
            Samples in a batch of a rank, or of all ranks; required unless `batching` is "random".

        Returns
        -------
        EpochOrder
            Array-like.

        Raises
        ------
        ValueError
            If settings contradict each other.

        Examples
        --------
        >>> ds = getfixture("example")
        >>> order = mix({"a": ds[:1], "b": ds[1:]}, {"a": 1, "b": 1}).order(0)
        >>> len(order), np.sort(order)[0]
        (3, np.int64(0))
        """
        from npstream.mixture.epochs import MixtureEpochs, mixture_settings

        settings = mixture_settings(
            self.names, batching, batch_size, global_batch_size,
            shuffle=Shuffle(block, lanes, stratified), seed=seed,
        )  # fmt: skip
        return MixtureEpochs(self._spec, settings).order(integer("epoch", epoch, 0))

    def shuffle(
        self,
        seed: int,
        epoch: int = 0,
        *,
        block: BlockSize = "auto",
        lanes: int | None = None,
        stratified: bool = False,
        batching: str = "random",
        batch_size: int | None = None,
        global_batch_size: int | None = None,
    ) -> Dataset:
        """Return a view of the samples that a training epoch draws, in the order of `order`.

        Parameters
        ----------
        seed : int
            Seed of the order, as in `npstream.Dataset.shuffle`.
        epoch : int, default: 0
            Number of the epoch, as in `npstream.Dataset.shuffle`.
        block : int, str or None, default: "auto"
            Bytes of data to shuffle together. 0 shuffles nothing, and None shuffles all data
            together; see `npstream.Shuffle`.
        lanes : int, optional
            Number of chunk sequences that the order interleaves; see `npstream.Shuffle`.
        stratified : bool, default: False
            Whether the chunks of each source come evenly from all its parts; see
            `npstream.Shuffle`.
        batching : {"random", "stratified", "per_stream", "device_per_stream"}, default: "random"
            How sources are drawn; see `iter`.
        batch_size, global_batch_size : int, optional
            Samples in a batch of a rank, or of all ranks; required unless `batching` is "random".

        Returns
        -------
        Dataset

        Raises
        ------
        ValueError
            If settings contradict each other.

        Examples
        --------
        >>> ds = getfixture("example")
        >>> sorted(mix({"a": ds[:1], "b": ds[1:]}).shuffle(0)["label"])
        [np.int64(0), np.int64(1), np.int64(2)]
        """
        order = self.order(
            seed, epoch, block=block, lanes=lanes, stratified=stratified, batching=batching,
            batch_size=batch_size, global_batch_size=global_batch_size,
        )  # fmt: skip
        return self._view(Selection(self._selection.dataset_size, range(len(order)), (order,)))

    def iter(
        self,
        rank: int | None = None,
        world: int | None = None,
        *,
        batching: str = "random",
        batch_size: BatchSizes = None,
        global_batch_size: BatchSizes = None,
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
        """Return an iterable over this rank's part of the drawn samples, epoch after epoch.

        A pass through a source reads all its samples. Each lane of the source begins the next pass
        only after its last sample of this one. Each pass has its own order if `shuffle` is set.
        Parameters that `npstream.Dataset.iter` has, too, are explained there in full.

        Parameters
        ----------
        rank, world : int, optional
            Number of this process, and number of processes. By default they are detected.
        batching : {"random", "stratified", "per_stream", "device_per_stream"}, default: "random"
            How sources are drawn. "random" draws a source for each sample. "stratified" does so,
            too, but each global batch holds exact shares. "per_stream" draws a source for each
            global batch, "device_per_stream" for each batch of a rank.
        batch_size, global_batch_size : int, or mapping of str to int, optional
            Samples in a batch of a rank, or of all ranks; without either, samples are yielded, not
            batches. With "per_stream" or "device_per_stream", a mapping gives the size for each
            source.
        batched : bool, default: True
            If False, yield samples even with `batch_size`, for torch to batch with the same size.
        shuffle : bool, Shuffle, str or StreamingShuffle, default: False
            Whether each pass has a random order of its own, or the order's settings. Orders of
            Streaming take whole datasets as sources, and the mixture must have no weights.
        seed : int, default: 0
            Seed of the orders, any integer. Orders of Streaming do not use it.
        epoch : int, default: 0
            Number of the first epoch.
        epoch_size : int, float or str, optional
            Samples in an epoch; by default the size of all sources together.
        last : {"repeat", "drop", "short"}, default: "repeat"
            How to treat the last batch if samples are too few for a full batch on every rank: fill
            it with repeated samples, omit it, or yield it as it is.
        ranks_per_node : int, optional
            Ranks on each machine; by default LOCAL_WORLD_SIZE or all ranks.
        replication : int, default: 1
            Number of consecutive ranks that read the same samples.
        decode : bool, str, sequence of str or mapping, default: False
            Columns of images to decode, in threads, as for `load`.
        transform : callable, optional
            Takes each Batch, or each sample, and returns its replacement.
        threads : int, optional
            Threads that make the next batches; by default one fewer than the processors, at most 8.
        prefetch : int or str, optional
            Maximum number of batches to make ahead, or their maximum bytes as text.
        transform_workers : int, default: 0
            Processes that apply transforms, started with "spawn". The order stays the same.
        to : {"torch"}, optional
            Yield tensors instead of arrays.
        device : torch.device, str or int, optional
            Copy the tensors to this device.
        gather : {"device"}, optional
            Let a CUDA device copy the rows of batches from local or cached shards by itself.
        valid : None, optional
            Not for mixtures: another value raises ValueError.
        balance : str or array_like of int or float, optional
            The cost of each row of the mixture, or the name of a column of costs. The samples of a
            global batch are divided among ranks so that all ranks have nearly equal costs. Not with
            "device_per_stream", nor with batch sizes that differ by source.
        buckets : None, optional
            Not for mixtures: another value raises ValueError.
        on_error : {"raise", "skip", "replace"}, default: "raise"
            What to do with a sample that cannot be read. "replace" needs ``batching="random"`` or
            "stratified", because it may read a sample of another source.
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
        >>> mixed = mix({"a": ds[:1], "b": ds[1:]}, {"a": 1, "b": 1}, columns=["source"])
        >>> batches = mixed.iter(0, 1, batch_size=2, epoch_size=4, batching="stratified")
        >>> [sorted(batch["source"]) for batch in batches]
        [['a', 'b'], ['a', 'b']]
        """
        from npstream.mixture.epochs import mixture_settings, refuse_settings

        sizes = [batch_size, global_batch_size]
        refuse_settings(batching, on_error, valid, balance, buckets, sizes)
        _, costs = self._mask_and_costs(None, balance)
        return self._iterate(
            mixture_settings(
                self.names, batching, batch_size, global_batch_size, rank=rank, world=world,
                batched=batched, shuffle=shuffle, seed=seed, epoch=epoch, epoch_size=epoch_size,
                last=last, ranks_per_node=ranks_per_node, replication=replication,
                decode=decode, transform=transform, threads=threads, prefetch=prefetch,
                transform_workers=transform_workers, to=to, device=device, gather=gather,
                balance=costs, on_error=on_error, max_errors=max_errors,
            )
        )  # fmt: skip

    def _run_settings(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of `iter` for rank 0 of a state's run."""
        from npstream.mixture.epochs import batches_of_run

        return super()._run_settings(state) | batches_of_run(state)

    def _epochs_for(self, settings: IterationSettings) -> AnyEpochs:
        from npstream.mixture.epochs import MixtureEpochs, MixtureSettings

        assert isinstance(settings, MixtureSettings)
        if isinstance(settings.shuffle, bool | Shuffle):
            return MixtureEpochs(self._spec, settings)
        if settings.batching != "random":
            raise ValueError(
                f"batching={settings.batching!r}: with an order of Streaming, give "
                "shuffle=npstream.StreamingShuffle(batching_method=...) instead"
            )
        if self._spec.schedule != make_schedule(self.names, self._spec.sizes):
            raise ValueError(
                "an order of Streaming has its own weights: mix without weights, and give "
                "npstream.StreamingShuffle(proportion=...)"
            )
        return super()._epochs_for(settings)

    def continuing(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return a state with which a run over another mixture continues over this mixture.

        Use it to change weights in the middle of a run, or to add and remove sources. Sources of
        the run, identified by name, continue their passes. New sources begin.

        Parameters
        ----------
        state : mapping
            The result of `state_dict` of an iteration over the other mixture.

        Returns
        -------
        dict
            A state for `load_state_dict` of an iteration over this mixture.

        Raises
        ------
        ValueError
            If the state is not of a mixture, or its epochs do not fit this mixture.

        Examples
        --------
        >>> ds = getfixture("example")
        >>> few, more = mix({"a": ds}), mix({"a": ds, "b": ds}, {"a": 1, "b": 2})
        >>> state = few.iter(0, 1, batch_size=1, epoch_size=6).state_dict()
        >>> batches = more.iter(0, 1, batch_size=1, epoch_size=6)
        >>> batches.load_state_dict(more.continuing(state))
        >>> len(list(batches))
        6
        """
        from npstream.mixture.run import continue_run

        return continue_run(self._spec, state)


def _make_spec(source: MixedSource, schedule: Schedule, block: int | None) -> MixtureSpec:
    members = range(len(source.members))
    datasets = {id(m.source): DatasetFingerprint(m.source) for m in source.members}
    return MixtureSpec(
        names=tuple(member.name for member in source.members),
        sizes=tuple(member.selection.size for member in source.members),
        nbytes=tuple(source.member_bytes(number) for number in members),
        chunks=tuple(partial(source.member_chunks, number) for number in members),
        fingerprints=tuple(
            ViewFingerprint(datasets[id(m.source)], m.selection) for m in source.members
        ),
        schedule=schedule,
        block=block,
    )


def mix(
    sources: Mapping[str, Dataset],
    weights: Mapping[str, float] | Sequence[tuple[int, Mapping[str, float]]] | None = None,
    *,
    alpha: float = 1.0,
    columns: Sequence[str] | None = None,
    block: int | None = None,
) -> Mixture:
    """Mix datasets, or views of datasets, by weight.

    Parameters
    ----------
    sources : mapping of str to Dataset
        The sources by name: one-dimensional, nonempty views of local or remote datasets. Weights,
        batches and states use these names. The transform of a view, from
        `Dataset.with_transform`, applies to its samples.
    weights : mapping of str to float, or sequence of (int, mapping), optional
        The share of each source in the drawn samples: positive numbers on any scale. A sequence of
        ``(position, weights)`` pairs changes them during the run. A position counts samples of all
        ranks; the first is 0. By default weights depend on `alpha`.
    alpha : float, default: 1.0
        Without `weights`, the weight of a source is its number of samples to this power. 1 draws
        in proportion to sizes, 0 draws all sources equally.
    columns : sequence of str, optional
        The columns of the mixture; by default those that all sources have, with the same
        declaration. "source" is the name of each sample's source.
    block : int, optional
        Number of consecutive samples in which all sources have their exact shares. If each batch is
        of one source, `block` is a number of batches. A number that is not coprime to the number of
        lanes is raised to the next coprime number. By default at least 4,096, and enough for 32
        samples of the rarest source, up to about 2**20.

    Returns
    -------
    Mixture

    Raises
    ------
    ColumnError
        If some sources lack a column of `columns`. The message names them.
    ValueError
        If a source is empty or has several axes, if the sources have no column in common, or if
        weights are not positive numbers for all sources.
    TypeError
        If a source is not a Dataset, or is a mixture.

    Examples
    --------
    >>> ds = getfixture("example")
    >>> mixed = mix({"odd": ds[1::2], "all": ds}, {"odd": 3, "all": 1}, columns=["label", "source"])
    >>> mixed[1]
    {'label': np.int64(0), 'source': 'all'}
    >>> mixed.weights
    {'odd': 0.75, 'all': 0.25}
    """
    members = _members(sources)
    fields, column_errors = common_columns(members, [ds.columns for ds in sources.values()])
    has_source_names = columns is not None and SOURCE in columns
    if has_source_names:
        _check_source_column(sources)
    names = tuple(fields)
    source = MixedSource(members, fields, column_errors, SOURCE if has_source_names else None)
    if columns is not None:
        names = _column_names(source, columns)
    elif not names:
        raise ValueError(
            "the sources have no column in common: "
            f"{next(iter(column_errors.values()), 'they have none at all')}"
        )
    sizes = [member.selection.size for member in members]
    schedule = make_schedule([member.name for member in members], sizes, weights, alpha)
    return Mixture(source, Selection.all(len(source.rows)), names, None, schedule, block)


def _members(sources: Mapping[str, Dataset]) -> list[Member]:
    """Return the sources as members; raise TypeError or ValueError if one is invalid."""
    if not isinstance(sources, Mapping):
        raise TypeError(
            f"sources is of type {type(sources).__name__}: mix takes a mapping from names to "
            "datasets, as in npstream.mix({'web': web, 'books': books})"
        )
    if not sources:
        raise ValueError("a mixture needs at least one source: give datasets by name")
    members = []
    for name, ds in sources.items():
        if not isinstance(name, str):
            raise TypeError(f"the name of a source is {name!r}: expected a str")
        if not isinstance(ds, Dataset):
            raise TypeError(f"source {name!r} is a {type(ds).__name__}; expected a Dataset")
        if isinstance(ds._source, MixedSource):
            raise TypeError(
                f"source {name!r} is a mixture or concatenation, or a view of one: mix views of "
                "its sources"
            )
        if ds.ndim != 1:
            raise ValueError(
                f"source {name!r} has {quantity(ds.ndim, 'axis')}; expected 1: mix its ravel()"
            )
        if not len(ds):
            raise ValueError(f"source {name!r} is empty: leave it out of the mixture")
        ds._source.fetcher.current_table()  # raises if the dataset is closed
        members.append(Member(name, ds._source, ds._selection, ds._transform))
    return members


def _check_source_column(sources: Mapping[str, Dataset]) -> None:
    """Raise ValueError if a source has a column `SOURCE`, the name of the computed column."""
    for name, ds in sources.items():
        if SOURCE in ds.columns:
            raise ValueError(
                f"columns: {SOURCE!r} is the column of source names, and source {name!r} has a "
                "column of the same name: leave it out of this source, as in ds[[...]]; or leave "
                "it out of columns"
            )


def _column_names(source: MixedSource, columns: Sequence[str]) -> tuple[str, ...]:
    names = tuple(source.field(name).name for name in name_list(columns))
    if len(set(names)) != len(names):
        raise ValueError(f"a column is listed twice in {list(names)}")
    return names

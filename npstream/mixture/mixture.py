"""Mixtures: samples of several datasets, drawn by weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from npstream._core.arguments import integer, quantity
from npstream.dataset.dataset import Dataset, Transform
from npstream.explore import display
from npstream.indexing.selection import Selection
from npstream.iteration.state import DatasetFingerprint, ViewFingerprint
from npstream.mixture.shares import MixtureOf, schedule_of
from npstream.mixture.source import SOURCE, MixedSource
from npstream.orders.order import Shuffle, Size
from npstream.reading.common_columns import common_columns
from npstream.reading.source import Member

if TYPE_CHECKING:
    from npstream.iteration.epochs import AnyEpochs
    from npstream.iteration.iteration import Iteration
    from npstream.iteration.settings import IterationSettings
    from npstream.mixture.epochs import Sizes
    from npstream.mixture.shares import Schedule
    from npstream.mixture.stream import EpochOrder
    from npstream.orders.streaming.settings import StreamingShuffle


class Mixture(Dataset):
    """Views of several datasets, one after the other, and the weights they are drawn by.

    Made by `npstream.mix`. It is a Dataset of all their samples: the rows of the first source,
    then those of the second, and so on. Weights are what `iter`, `order` and `shuffle` draw by;
    views of a mixture, such as ``mix[::2]``, are Datasets without weights.

    Examples
    --------
    >>> ds = getfixture("example")
    >>> mix({"odd": ds[1::2], "all": ds}, {"odd": 3, "all": 1}).weights
    {'odd': 0.75, 'all': 0.25}
    """

    __slots__ = ("_of",)

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
        self._of = _facts(source, schedule, block)

    def __reduce__(self) -> tuple[Any, ...]:
        of = self._of
        made = (self._source, self._selection, self._names, self._transform)
        return Mixture, (*made, of.schedule, of.block)

    def _like(self, names: tuple[str, ...], transform: Transform | None) -> Dataset:
        of = self._of
        return Mixture(self._source, self._selection, names, transform, of.schedule, of.block)

    def __repr__(self) -> str:
        of = self._of
        sources = list(zip(of.names, of.sizes, of.schedule[0][1], strict=True))
        changes = of.schedule[1][0] if len(of.schedule) > 1 else None
        return display.mixture_text(len(self), self._encodings(), sources, changes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sources."""
        return self._of.names

    @property
    def weights(self) -> dict[str, float] | list[tuple[int, dict[str, float]]]:
        """Share of each source in what is drawn; or such shares, from which position on."""
        schedule = [
            (position, dict(zip(self.names, shares, strict=True)))
            for position, shares in self._of.schedule
        ]
        return schedule[0][1] if len(schedule) == 1 else schedule

    def origin(self, index: Any) -> tuple[Any, Any]:
        """Return which sources samples are of.

        Parameters
        ----------
        index : int, slice or array_like
            Rows of the mixture.

        Returns
        -------
        source, row : int or ndarray of int64
            Number of the source, as in `names`, and of the sample in its view.

        Examples
        --------
        >>> ds = getfixture("example")
        >>> mix({"a": ds, "b": ds[::2]}).origin([1, 3, 4])
        (array([0, 1, 1]), array([1, 0, 1]))
        """
        chosen = self._selection.select(index)
        rows = self._source.rows
        ids = np.array([chosen]) if isinstance(chosen, int) else chosen.ids()
        which = rows.view_numbers(ids)
        row = ids - rows.bounds[which]
        if isinstance(chosen, int):
            return int(which[0]), int(row[0])
        return which.reshape(chosen.shape), row.reshape(chosen.shape)

    # What is drawn

    def order(
        self,
        seed: int,
        epoch: int = 0,
        *,
        block: Size = "auto",
        lanes: int | None = None,
        batching: str = "random",
        batch_size: int | None = None,
        global_batch_size: int | None = None,
    ) -> EpochOrder:
        """Return the order of a training epoch: an array of row numbers, computed where it is read.

        Samples may come more than once in it, or not at all, as the weights will have it.

        Parameters
        ----------
        seed : int
            What the order is drawn from; it is the same on any machine and in any release.
        epoch : int, default: 0
            Number of the epoch; each has another order.
        block : int, str or None, default: "auto"
            Bytes of data that are shuffled together, or all for None; see `npstream.Shuffle`.
        lanes : int, optional
            Sequences of chunks that the order interleaves; see `npstream.Shuffle`.
        batching : {"random", "stratified", "per_stream", "device_per_stream"}, default: "random"
            What a source is drawn for; see `iter`.
        batch_size, global_batch_size : int, optional
            Samples in a batch of a rank, or of all ranks, if `batching` depends on them.

        Returns
        -------
        EpochOrder
            Array-like.

        Raises
        ------
        ValueError
            If settings do not fit each other.

        Examples
        --------
        >>> ds = getfixture("example")
        >>> order = mix({"a": ds[:1], "b": ds[1:]}, {"a": 1, "b": 1}).order(0)
        >>> len(order), np.sort(order)[0]
        (3, np.int64(0))
        """
        from npstream.mixture.epochs import MixtureEpochs, mixture_settings

        settings = mixture_settings(
            self.names, batching, batch_size, global_batch_size, shuffle=Shuffle(block, lanes),
            seed=seed,
        )  # fmt: skip
        return MixtureEpochs(self._of, settings).order(integer("epoch", epoch, 0))

    def shuffle(
        self,
        seed: int,
        epoch: int = 0,
        *,
        block: Size = "auto",
        lanes: int | None = None,
        batching: str = "random",
        batch_size: int | None = None,
        global_batch_size: int | None = None,
    ) -> Dataset:
        """Return a view of what is drawn in a training epoch, in that order; `order` gives it.

        Parameters
        ----------
        seed : int
            What the order is drawn from; it is the same on any machine and in any release.
        epoch : int, default: 0
            Number of the epoch; each has another order.
        block : int, str or None, default: "auto"
            Bytes of data that are shuffled together, or all for None; see `npstream.Shuffle`.
        lanes : int, optional
            Sequences of chunks that the order interleaves; see `npstream.Shuffle`.
        batching : {"random", "stratified", "per_stream", "device_per_stream"}, default: "random"
            What a source is drawn for; see `iter`.
        batch_size, global_batch_size : int, optional
            Samples in a batch of a rank, or of all ranks, if `batching` depends on them.

        Returns
        -------
        Dataset

        Raises
        ------
        ValueError
            If settings do not fit each other.

        Examples
        --------
        >>> ds = getfixture("example")
        >>> sorted(mix({"a": ds[:1], "b": ds[1:]}).shuffle(0)["label"])
        [np.int64(0), np.int64(1), np.int64(2)]
        """
        order = self.order(
            seed, epoch, block=block, lanes=lanes, batching=batching,
            batch_size=batch_size, global_batch_size=global_batch_size,
        )  # fmt: skip
        return self._view(Selection(self._selection.source, range(len(order)), (order,)))

    def iter(
        self,
        rank: int | None = None,
        world: int | None = None,
        *,
        batching: str = "random",
        batch_size: Sizes = None,
        global_batch_size: Sizes = None,
        batched: bool = True,
        shuffle: bool | str | Shuffle | StreamingShuffle = False,
        seed: int = 0,
        epoch: int = 0,
        epoch_size: int | float | str | None = None,
        last: str = "repeat",
        ranks_per_node: int | None = None,
        replication: int = 1,
        transform: Callable[[Any], Any] | None = None,
    ) -> Iteration:
        """Return an iterable over this rank's part of what is drawn, epoch after epoch.

        Each source is read through before any of its samples comes again, and in a new order
        then, whenever that is.

        Parameters
        ----------
        rank, world : int, optional
            Number of this process among those that share the view, and of them all. By default
            those of ``torch.distributed`` where it is initialized; else RANK and WORLD_SIZE of the
            environment; else 0 of 1. That is looked up when it is needed, not before.
        batching : {"random", "stratified", "per_stream", "device_per_stream"}, default: "random"
            What a source is drawn for: each sample; each sample, but so that every global batch
            holds the exact shares; each global batch; each batch of a rank.
        batch_size, global_batch_size : int, or mapping of str to int, optional
            Samples in a batch of a rank, or of all ranks. Batches of one source each may differ in
            size by source. Without either samples are yielded, not batches.
        batched : bool, default: True
            False yields samples also with `batch_size`, for torch to make batches of as many:
            workers are dealt runs of that length.
        shuffle : bool, Shuffle, str or StreamingShuffle, default: False
            Whether each epoch has a random order of its own, and its settings; see
            `npstream.Shuffle`. False keeps the view's order. "py1e", "py1s", "py1br", "py2s" and
            "naive" are orders of Streaming, of whole datasets, whose settings
            `npstream.StreamingShuffle` holds.
        seed : int, default: 0
            What orders are drawn from, except for those of Streaming.
        epoch : int, default: 0
            Number of the first epoch.
        epoch_size : int, float or str, optional
            Samples in an epoch, by default those of all sources together; "100k", " 64 M", "1.5B",
            "2T" and 5e5 are numbers, too. Fractions of a sample are dropped. Epochs then follow
            each other through the view, in one order until all its samples came, so that none is
            passed over. With an order of Streaming, each epoch picks its samples as Streaming does.
        last : {"repeat", "drop", "short"}, default: "repeat"
            Where samples do not suffice for a full batch on every rank: "repeat" fills the last one
            up with the first samples of the epoch, and marks them in ``batch.repeated`` (samples
            carry no mark); "drop" leaves it out, as torch's ``drop_last=True`` does. With both, all
            ranks have the same number of batches of the same size. "short" reads each sample once,
            and ranks may differ. Orders of Streaming know "repeat" and "drop", but repeat just as
            many as make ranks equal, so that the last batch may be short.
        ranks_per_node : int, optional
            Ranks on each machine, numbered one machine after the other. With a number of lanes that
            the number of machines divides, a machine reads only chunks that no other does. By
            default LOCAL_WORLD_SIZE of the environment if it is not given who this rank is, else
            all.
        replication : int, default: 1
            So many ranks in a row read the same samples, as those do that share one model.
        transform : callable, optional
            Takes each Batch, or each sample, and returns what is yielded in its place.

        Returns
        -------
        Iteration

        Raises
        ------
        ValueError
            If settings do not fit each other, or the cache cannot hold what the order needs.

        Examples
        --------
        >>> ds = getfixture("example")
        >>> mixed = mix({"a": ds[:1], "b": ds[1:]}, {"a": 1, "b": 1}, columns=["source"])
        >>> batches = mixed.iter(0, 1, batch_size=2, epoch_size=4, batching="stratified")
        >>> [sorted(batch["source"]) for batch in batches]
        [['a', 'b'], ['a', 'b']]
        """
        from npstream.mixture.epochs import mixture_settings

        return self._iterate(
            mixture_settings(
                self.names, batching, batch_size, global_batch_size, rank=rank, world=world,
                batched=batched, shuffle=shuffle, seed=seed, epoch=epoch, epoch_size=epoch_size,
                last=last, ranks_per_node=ranks_per_node, replication=replication,
                transform=transform,
            )
        )  # fmt: skip

    def _epochs_for(self, settings: IterationSettings) -> AnyEpochs:
        from npstream.mixture.epochs import MixtureEpochs, MixtureSettings

        assert isinstance(settings, MixtureSettings)
        if isinstance(settings.shuffle, bool | Shuffle):
            return MixtureEpochs(self._of, settings)
        if settings.batching != "random":
            raise ValueError(
                f"batching={settings.batching!r}: with an order of Streaming, that is its "
                "batching_method, as in shuffle=npstream.StreamingShuffle(batching_method=...)"
            )
        if self._of.schedule != schedule_of(self.names, self._of.sizes):
            raise ValueError(
                "an order of Streaming has weights of its own: mix without weights, and give "
                "npstream.StreamingShuffle(proportion=...)"
            )
        return super()._epochs_for(settings)

    def continuing(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return a state with which a run over another mixture goes on over this one.

        It is how weights change in the middle of a run, and how sources come and go: those that
        the run knows, by their names, go on where they were; new ones begin.

        Parameters
        ----------
        state : mapping
            What `state_dict` returned, of an iteration over the other mixture.

        Returns
        -------
        dict
            What `load_state_dict` takes, of an iteration over this one.

        Raises
        ------
        ValueError
            If the state is not that of a mixture, or its epochs do not fit this one.

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

        return continue_run(self._of, state)


def _facts(source: MixedSource, schedule: Schedule, block: int | None) -> MixtureOf:
    members = range(len(source.members))
    datasets = {id(m.source): DatasetFingerprint(m.source) for m in source.members}
    return MixtureOf(
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
    """Mix datasets, or views of them, by weight.

    Parameters
    ----------
    sources : mapping of str to Dataset
        What is mixed, by the names under which weights, batches and states know them: one-
        dimensional views that have samples, of local datasets and of remote ones alike. What
        `Dataset.with_transform` gave one of them applies to its samples.
    weights : mapping of str to float, or sequence of (int, mapping), optional
        Of each source, its share in the samples that are drawn: positive numbers on any scale. A
        sequence changes them along the run: from which position on, in samples of all ranks, and
        what they are then; the first position is 0.
    alpha : float, default: 1.0
        Without weights, those are the numbers of samples to this power: 1 draws from sources by
        their sizes, 0 from all alike.
    columns : sequence of str, optional
        The columns to have; by default those that all sources have, with one meaning. "source" is
        the name of the source that a sample is of.
    block : int, optional
        Samples that hold exact shares of all sources (batches, where each is of one source); if it
        has a factor in common with the number of lanes, the next that has none. By default at
        least 4,096, and enough for 32 of the rarest source.

    Returns
    -------
    Mixture

    Raises
    ------
    ColumnError
        If a column is asked for that some sources do not have; it names them.
    ValueError
        If a source is empty, or the weights are not positive numbers of all sources.
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
    fields, partial_ = common_columns(members, [ds.columns for ds in sources.values()])
    is_named = columns is not None and SOURCE in columns
    if is_named:
        _require_free(sources)
    names = tuple(fields)
    source = MixedSource(members, fields, partial_, is_named)
    if columns is not None:
        names = _chosen(source, columns)
    elif not names:
        raise ValueError(
            "the sources have no column in common: "
            f"{next(iter(partial_.values()), 'they have none at all')}"
        )
    sizes = [member.selection.size for member in members]
    schedule = schedule_of([member.name for member in members], sizes, weights, alpha)
    return Mixture(source, Selection.all(len(source.rows)), names, None, schedule, block)


def _members(sources: Mapping[str, Dataset]) -> list[Member]:
    """Check what is to be mixed."""
    if not isinstance(sources, Mapping):
        raise TypeError(f"sources={sources!r}: expected datasets by name, as in {{'web': ds}}")
    if not sources:
        raise ValueError("a mixture of no sources: give at least one, by name")
    members = []
    for name, ds in sources.items():
        if not isinstance(name, str):
            raise TypeError(f"a source is called {name!r}: expected a str")
        if not isinstance(ds, Dataset):
            raise TypeError(f"source {name!r} is a {type(ds).__name__}; expected a Dataset")
        if isinstance(ds._source, MixedSource):
            raise TypeError(
                f"source {name!r} is a mixture, or a view of one: mix views of its sources"
            )
        if ds.ndim != 1:
            raise ValueError(
                f"source {name!r} has {quantity(ds.ndim, 'axis')}; expected 1: mix its ravel()"
            )
        if not len(ds):
            raise ValueError(f"source {name!r} is empty: leave it out of the mixture")
        ds._source.fetcher.current_table()  # says so if it is closed
        members.append(Member(name, ds._source, ds._selection, ds._transform))
    return members


def _require_free(sources: Mapping[str, Dataset]) -> None:
    """Raise unless the column of the sources' names can have its own."""
    for name, ds in sources.items():
        if SOURCE in ds.columns:
            raise ValueError(
                f"columns: {SOURCE!r} is the name of each sample's source, and source {name!r} has "
                "a column of that name: leave it out of that view, as in ds[[...]], or out of "
                "columns, where it is a common column"
            )


def _chosen(source: MixedSource, columns: Sequence[str]) -> tuple[str, ...]:
    if isinstance(columns, str):
        raise TypeError(f"columns={columns!r}: expected a list of names, [{columns!r}]")
    names = tuple(source.field(name).name for name in columns)
    if len(set(names)) != len(names):
        raise ValueError(f"a column is named twice in {list(names)}")
    return names

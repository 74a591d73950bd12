"""Provide the methods of datasets that return views, tables, and the provenance of samples.

Tested in tests/dataset/test_view_methods.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from npstream._core.arguments import integer, name_list
from npstream._core.typing import Sample
from npstream.dataset.splits import chain_transforms, filter_mask, query_mask
from npstream.errors import ColumnError, short_repr, short_traceback
from npstream.reading.cost_limit import check_cost
from npstream.reading.load import SAMPLE_BLOCK
from npstream.reading.source import adapt_transform

if TYPE_CHECKING:
    from npstream.indexing.selection import Selection
    from npstream.iteration.iteration import Iteration
    from npstream.iteration.provenance import Provenance
    from npstream.reading.source import Source

View = TypeVar("View")
"""The class of the views that the methods return, `Dataset`."""


_QUERY_BYTES = 1 << 23
"""Bytes of samples that `query` evaluates at once."""


class ViewMethods(Generic[View]):
    """Methods of `Dataset`."""

    __slots__ = ()

    if TYPE_CHECKING:
        iter: Callable[..., Iteration]
        ravel: Callable[[], Any]
        _replace: Callable[..., View]
        _project: Callable[[Sequence[str]], View]
        _source: Source
        _selection: Selection
        _names: tuple[str, ...]
        _transform: Callable[[Sample], Any] | None

        def __len__(self) -> int: ...
        def __getitem__(self, index: Any) -> Any: ...

    # Rows

    def head(self, n: int = 5) -> View:
        """Return a view of the first rows, as ``ds[:n]`` does.

        Parameters
        ----------
        n : int, default: 5
            Number of rows. A view with fewer rows is returned whole. If `n` is negative, the view
            has all rows except the last ``-n``, as in pandas.

        Returns
        -------
        Dataset

        Examples
        --------
        >>> getfixture("example").head(2)["text"].to_numpy()
        array(['zero', 'one'], dtype=StringDType())
        """
        with short_traceback:
            view: View = self[: integer("n", n)]
            return view

    def sample(self, n: int, seed: int = 0) -> View:
        """Return a view of random samples, in random order, each at most once.

        It is ``ds.shuffle(seed, block=None)[:n]``: a larger `n` gives the same samples and more.
        Nothing is read.

        Parameters
        ----------
        n : int
            Number of samples.
        seed : int, default: 0
            Any integer. A seed gives the same samples on any machine and in any release.

        Returns
        -------
        Dataset
            A 1-d view. To get random samples in the dataset's order, index with sorted random rows
            instead.

        Raises
        ------
        ValueError
            If the view has fewer than `n` samples, or `n` is negative.

        Examples
        --------
        >>> getfixture("example").sample(2, seed=1)["label"].load()
        array([1, 0])
        """
        from npstream.orders.order import full_order

        with short_traceback:
            view = self.ravel()
            n, seed = integer("n", n), integer("seed", seed)
            if not 0 <= n <= len(view):
                raise ValueError(
                    f"n={n}: expected a number from 0 to {len(view)}, the number of samples; to "
                    "draw samples several times, index with random rows"
                )
            order = view._selection.permute(full_order(len(view), seed))
            samples: View = view._view(order.select(slice(n)))
            return samples

    def sort(
        self, by: str | Sequence[str], *more: str, descending: bool | Sequence[bool] = False
    ) -> View:
        """Return a view of the samples in the order of a column's values.

        Only the columns to sort by are read. The sort is stable: samples with equal
        values keep their order. None, NaN and NaT come last, in descending order, too.

        Parameters
        ----------
        by : str or sequence of str
            The columns to sort by; the first one is the primary sort key.
        *more : str
            Further columns to sort by.
        descending : bool or sequence of bool, default: False
            Whether the greatest value comes first; a sequence has a value for each column.

        Returns
        -------
        Dataset
            A 1-d view, which holds the number of each row in memory.

        Raises
        ------
        ColumnError
            If there is no such column.
        TypeError
            If values of a column have no order, such as arrays and images.
        MemoryError
            Before reading, if the column needs more memory than is free.

        Examples
        --------
        >>> getfixture("example").sort("label", descending=True)["text"].to_numpy()
        array(['two', 'one', 'zero'], dtype=StringDType())
        """
        from npstream.explore.sorting import sort_order

        with short_traceback:
            names = [*(name_list(by) if not isinstance(by, str) else [by]), *more]
            flags = _flags(names, descending)
            view = self.ravel()
            columns = {name: view[name] for name in dict.fromkeys(names)}
            for column in columns.values():
                _require_order(column)
            # If a column is named twice, its first flag determines the direction.
            order = sort_order(
                {name: column.load() for name, column in columns.items()},
                dict(zip(reversed(names), reversed(flags), strict=True)),
            )
            sorted_view: View = view[order]
            return sorted_view

    # Columns

    def drop(self, *names: str) -> View:
        """Return a view without some columns.

        Parameters
        ----------
        *names : str
            Columns to leave out.

        Returns
        -------
        Dataset

        Raises
        ------
        ColumnError
            If there is no such column.
        TypeError
            If a name is not a str.

        Examples
        --------
        >>> getfixture("example").drop("text").columns
        ('label',)
        """
        with short_traceback:
            for name in names:
                if not isinstance(name, str):
                    raise TypeError(
                        f"drop takes names of columns, got {short_repr(name)}: write "
                        "ds.drop('a', 'b')"
                    )
                if name not in self._names:
                    raise ColumnError(name, self._names)
            return self._project([name for name in self._names if name not in names])

    def rename(self, mapping: Mapping[str, str] | None = None, /, **names: str) -> View:
        """Return a view whose columns have other names.

        Nothing is read or copied. Samples, batches, functions of `filter` and files that are
        written from the view have the new names. States of iterations stay valid. A function from
        an earlier `map` still gets the old names, and its result is not renamed.

        Parameters
        ----------
        mapping : mapping of str to str, optional
            Old name -> new name. Names can be exchanged.
        **names : str
            The same as keywords: ``old="new"``.

        Returns
        -------
        Dataset

        Raises
        ------
        ColumnError
            If there is no column of an old name.
        ValueError
            If two columns would have the same name.
        TypeError
            If `mapping` is not a mapping, or a new name is not a str.

        Examples
        --------
        >>> ds = getfixture("example").rename(label="y")
        >>> ds[1]
        {'text': 'one', 'y': np.int64(1)}
        """
        with short_traceback:
            if mapping is not None and not isinstance(mapping, Mapping):
                raise TypeError(
                    f"rename takes a mapping from old names to new names, got "
                    f"{short_repr(mapping)}: write ds.rename({{'old': 'new'}})"
                )
            changes = {**(mapping or {}), **names}
            for old, new in changes.items():
                if old not in self._names:
                    raise ColumnError(old, self._names)
                if not isinstance(new, str):
                    raise TypeError(f"the new name of column {old!r} is {short_repr(new)}, no str")
            new_names = {old: changes.get(old, old) for old in self._names}
            _require_distinct(new_names)
            source = self._source.renamed(new_names)
            transform = adapt_transform(self._transform, new_names)
            return self._replace(tuple(new_names.values()), transform, source)

    # Functions of samples

    def map(self, fn: Callable[[Sample], Any]) -> View:
        """Return a view whose samples are passed through a function when they are read.

        It does the same as `with_transform`, and has the name that other libraries use. If it is
        called again, the new function gets the results of the earlier one. Columns and batches are
        not passed through the function.

        Parameters
        ----------
        fn : callable
            Takes a sample and returns its replacement, of any type.

        Returns
        -------
        Dataset

        Raises
        ------
        TypeError
            If `fn` is not callable.

        Examples
        --------
        >>> ds = getfixture("example")
        >>> [*ds.map(lambda sample: sample["text"]).map(len)]
        [4, 3, 3]
        """
        with short_traceback:
            if not callable(fn):
                raise TypeError(f"map takes a function of a sample, got {short_repr(fn)}")
            return self.with_transform(fn)

    def with_transform(self, transform: Callable[[Sample], Any] | None) -> View:
        """Return a view whose samples are passed through a function.

        It applies to samples read by index, by iteration and by ``DataLoader(ds)``, but not to
        columns and batches. It runs after the view's current transform, if any.

        Parameters
        ----------
        transform : callable or None
            Takes a sample and returns its replacement. None removes the transform.

        Returns
        -------
        Dataset

        Examples
        --------
        >>> ds = getfixture("example")
        >>> [*ds.with_transform(lambda sample: sample["text"].upper())]
        ['ZERO', 'ONE', 'TWO']
        """
        return self._replace(self._names, chain_transforms(self._transform, transform))

    def filter(
        self,
        fn: Callable[[Any], Any],
        columns: Sequence[str] | None = None,
        batch_size: int | None = None,
    ) -> View:
        """Return a view of the samples for which a function returns True.

        Parameters
        ----------
        fn : callable
            Takes a sample and returns a bool; with `batch_size`, takes a Batch and returns a mask.
        columns : sequence of str, optional
            Columns to read and pass to `fn`; by default all.
        batch_size : int, optional
            Samples of each Batch that is passed to `fn`. By default, `fn` takes single samples.

        Returns
        -------
        Dataset
            A 1-d view.

        Raises
        ------
        TypeError
            If `fn` takes Batches and does not return a mask of their rows.

        Examples
        --------
        >>> ds = getfixture("example")
        >>> ds.filter(lambda sample: sample["label"] > 0).shape
        (2,)
        """
        view = self.ravel()
        inputs = view if columns is None else view[name_list(columns)]
        plan = self._source.plan(inputs._names)
        step = self._source.estimate_read_rows(SAMPLE_BLOCK, plan)
        mask = filter_mask(inputs, fn, batch_size, step)
        matches: View = view[mask]
        return matches

    def query(self, text: str) -> View:
        """Return a view of the samples for which an expression is true.

        The expression is read by a parser with a fixed grammar, and no code is run. Its columns
        are read in blocks, so that memory stays bounded. The right operand of ``and`` or
        ``or`` is read only for the rows whose result the left operand does not decide.

        Parameters
        ----------
        text : str
            Comparisons of columns, numbers and text in Python's syntax, such as
            ``"label == 3 and len(text) > 100"``. Allowed are ``== != < <= > >=``, chains of them,
            ``in`` and ``not in`` with a list or a text, ``is None``, ``is not None``, ``and``,
            ``or``, ``not``, ``+ - * / // % **``, ``len(column)``, numbers, texts, True, False and
            None. A name that is not an identifier is written in backquotes. Dates are compared to
            texts, such as ``day >= '2026-01-31'``.

        Returns
        -------
        Dataset
            A 1-d view. The samples keep their order.

        Raises
        ------
        ValueError
            If the text does not follow the grammar; the message has the position.
        ColumnError
            If there is no such column.
        TypeError
            If values of different kinds are compared, or the result is not True or False.
        ArithmeticError
            If an integer overflows, or is divided by zero.
        CostError
            If a column of a remote dataset takes more bytes than the limit of implicit reads.

        Examples
        --------
        >>> ds = getfixture("example")
        >>> ds.query("label > 0 and len(text) == 3")["text"].to_numpy()
        array(['one', 'two'], dtype=StringDType())
        """
        from npstream.explore.expression import parse

        with short_traceback:
            expression = parse(text)
            expression.check(self._names)
            view = self.ravel()
            names = expression.columns
            plan = self._source.plan(names)
            for name in names:
                column_plan = self._source.plan((name,))
                check_cost(self._source, view._selection, f"query {text!r}", column_plan)
            sizes = [field.encoding.size for field in plan.fields]
            if None in sizes:
                block = self._source.estimate_read_rows(_QUERY_BYTES, plan)
            else:
                block = _QUERY_BYTES // max(sum(filter(None, sizes)), 1)
            mask = query_mask(view[list(names)], expression.evaluate, max(block, 1))
            matches: View = view[mask]
            return matches

    # Tables of other libraries

    def to_arrow(self) -> Any:
        """Read the view into a table of pyarrow.

        Columns have the types of the Arrow stream of a view: text is text, axes of arrays are
        lists, JSON and decimals are text, and images are the bytes of their files. Functions of
        `map` are not applied.

        Returns
        -------
        pyarrow.Table

        Raises
        ------
        ValueError
            If the view has several axes, or no columns.
        TypeError
            If Arrow has no type for a column, such as complex numbers.
        MemoryError
            If the data need more memory than is free.
        MissingDependencyError
            If pyarrow is not installed.

        Examples
        --------
        >>> getfixture("example").to_arrow().column("label").to_pylist()
        [0, 1, 2]
        """
        from npstream.dataset.export import to_arrow_table

        with short_traceback:
            return to_arrow_table(self._source, self._selection, self._names)

    def to_pandas(self) -> Any:
        """Read the view into a DataFrame of pandas.

        Pandas converts the result of `to_arrow`, which determines the types. Dates are datetime64.

        Returns
        -------
        pandas.DataFrame
            With row numbers of the view as its index.

        Raises
        ------
        ValueError
            If the view has several axes, or no columns.
        TypeError
            If Arrow has no type for a column, such as complex numbers.
        MemoryError
            If the data need more memory than is free.
        MissingDependencyError
            If pandas or pyarrow is not installed.

        Examples
        --------
        >>> getfixture("example").to_pandas().groupby("label").size().tolist()
        [1, 1, 1]
        """
        from npstream.dataset.export import to_data_frame

        with short_traceback:
            return to_data_frame(self._source, self._selection, self._names)

    def to_polars(self) -> Any:
        """Read the view into a DataFrame of polars.

        Polars converts the result of `to_arrow`, which determines the types. Polars copies only the
        data that it cannot share with the Arrow table.

        Returns
        -------
        polars.DataFrame

        Raises
        ------
        ValueError
            If the view has several axes, or no columns.
        TypeError
            If Arrow has no type for a column, such as complex numbers.
        MemoryError
            If the data need more memory than is free.
        MissingDependencyError
            If polars or pyarrow is not installed.

        Examples
        --------
        >>> getfixture("example").to_polars()["text"].to_list()
        ['zero', 'one', 'two']
        """
        from npstream.dataset.export import to_polars_frame

        with short_traceback:
            return to_polars_frame(self._source, self._selection, self._names)

    def to_hf(self) -> Any:
        """Read the view into a Dataset of Hugging Face's datasets.

        Columns have the types of `to_arrow`. Columns of images get the feature type
        `datasets.Image`, and contain the stored files. Images of the encoding ``pil`` become PNG
        files.

        Returns
        -------
        datasets.Dataset
            In memory.

        Raises
        ------
        ValueError
            If the view has several axes, or no columns.
        TypeError
            If Arrow has no type for a column, such as complex numbers.
        MemoryError
            If the data need more memory than is free.
        MissingDependencyError
            If datasets or pyarrow is not installed.

        Examples
        --------
        >>> _ = getfixture("datasets")
        >>> getfixture("example").to_hf()[1]
        {'text': 'one', 'label': 1}
        """
        from npstream.dataset.export import to_hugging_face

        with short_traceback:
            return to_hugging_face(self._source, self._selection, self._names)

    def to_dask_dataframe(self) -> Any:
        """Return a lazy DataFrame of Dask, in partitions that follow the shards.

        A partition has the view's rows of one shard, or of several consecutive shards. If the
        sample ids of the view are in neither ascending nor descending order, partitions do not
        follow the shards. Each partition is read when Dask computes it. Partitions have the types
        of `to_pandas`.

        Returns
        -------
        dask.dataframe.DataFrame
            With row numbers of the view as its index.

        Raises
        ------
        ValueError
            If the view has several axes, or no columns.
        TypeError
            If Arrow has no type for a column, such as complex numbers.
        MissingDependencyError
            If dask, pandas or pyarrow is not installed.

        Examples
        --------
        >>> import pytest; _ = pytest.importorskip("dask.dataframe")
        >>> frame = getfixture("example").to_dask_dataframe()
        >>> int(frame["label"].sum().compute(scheduler="threads"))
        3
        """
        from npstream.dataset.export import to_dask_frame

        with short_traceback:
            return to_dask_frame(self, self._source, self._selection)

    # Runs

    def _run_settings(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of `iter` for rank 0 of a state's run."""
        from npstream.iteration.provenance import settings_of_run

        return settings_of_run(state)

    def provenance(
        self, state: Mapping[str, Any], *, steps: int | Iterable[int], epoch: int | None = None
    ) -> Provenance:
        """Return the samples that some steps of a training run read.

        The samples are computed from a saved state of the run. Only the index is read. Batch sizes
        and numbers of ranks may have changed in the run: the state knows all of them.

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


def _flags(names: Sequence[str], descending: bool | Sequence[bool]) -> list[bool]:
    """Return whether each column is sorted in descending order."""
    flags = [descending] * len(names) if isinstance(descending, bool) else [*descending]
    if not names or len(flags) != len(names) or not all(isinstance(flag, bool) for flag in flags):
        raise ValueError(
            f"descending={short_repr(descending)} with columns {short_repr(list(names))}: expected "
            "at least one column, and a bool, or a bool for each column"
        )
    return flags


def _require_order(column: Any) -> None:
    """Raise TypeError for a column whose values are arrays or images."""
    encoding = column._field.encoding
    if column.ndim > 1 or encoding.kind in ("image", "ndarray"):
        kind = "images" if encoding.kind == "image" else "arrays"
        raise TypeError(
            f"column {column.name!r} has {kind}, which have no order: sort by a column of numbers "
            "or text, or index with an order of your own, as in "
            "ds[numpy.argsort(keys, kind='stable')]"
        )


def _require_distinct(names: Mapping[str, str]) -> None:
    """Raise ValueError if two columns would get the same name."""
    owners: dict[str, str] = {}
    for old, new in names.items():
        if new in owners:
            raise ValueError(
                f"columns {owners[new]!r} and {old!r} would both have the name {new!r}: rename "
                f"both, or drop one before, as in ds.drop({old!r})"
            )
        owners[new] = old

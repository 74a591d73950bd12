"""The commands that show samples: ``head``, ``sample`` and ``query``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from npstream.commands.options import (
    Commands,
    add_command,
    add_dataset_options,
    add_json_option,
    add_read_limit_option,
    open_with_options,
    parse_count_option,
)

if TYPE_CHECKING:
    import argparse

    from npstream.dataset.dataset import Dataset

__all__ = ["add_head", "add_query", "add_sample"]

ROWS = 10
"""Default number of samples that a table shows."""

BLOCK = 256
"""Samples that are read at a time."""


def add_head(commands: Commands) -> None:
    """Add ``npstream head``."""
    head = add_command(commands, "head", "show the first samples", _run_head)
    head.add_argument("url", help="the dataset's directory or URL")
    _add_row_options(head, f"the number of samples; {ROWS} by default", ROWS)


def add_sample(commands: Commands) -> None:
    """Add ``npstream sample``."""
    sample = add_command(
        commands,
        "sample",
        "show samples that are drawn at random",
        _run_sample,
        "Show samples that are drawn at random, each at most once. The same seed draws the same.",
    )
    sample.add_argument("url", help="the dataset's directory or URL")
    sample.add_argument("--seed", type=int, default=0, help="any integer; 0 by default")
    _add_row_options(sample, f"the number of samples; {ROWS} by default", ROWS)


def add_query(commands: Commands) -> None:
    """Add ``npstream query``."""
    query = add_command(
        commands,
        "query",
        "show the samples that meet a condition",
        _run_query,
        "Show the samples that meet a condition, such as 'label == 3 and len(text) > 100'. The "
        "condition has Python's syntax; docs/recipes.md lists what it may contain.",
    )
    query.add_argument("url", help="the dataset's directory or URL")
    query.add_argument("condition", help="which samples, such as 'label == 3'")
    query.add_argument("--count", action="store_true", help="print only how many there are")
    _add_row_options(query, f"the most samples; by default {ROWS} in a table, all in JSON", None)
    add_read_limit_option(query)


def _add_row_options(parser: argparse.ArgumentParser, limit_help: str, limit: int | None) -> None:
    add = parser.add_argument
    add("-n", "--limit", metavar="N", type=parse_count_option, default=limit, help=limit_help)
    add("--columns", nargs="+", metavar="NAME", help="the columns to show; all by default")
    add("--row-index", metavar="NAME", help="with --json: add the row number under this name")
    add_json_option(parser, "print each sample as a line of JSON")
    add_dataset_options(parser)


def _run_head(options: argparse.Namespace) -> None:
    with open_with_options(options.url, options) as dataset:
        _show(dataset.head(options.limit), len(dataset), options)


def _run_sample(options: argparse.Namespace) -> None:
    with open_with_options(options.url, options) as dataset:
        view = dataset.sample(min(options.limit, len(dataset)), options.seed)
        _show(view, len(dataset), options)


def _run_query(options: argparse.Namespace) -> None:
    with open_with_options(options.url, options) as dataset:
        _select_columns(dataset, options)  # raises for an unknown column before any read
        matches = dataset.query(options.condition)
        if options.count:
            _show_count(len(matches), options)
            return
        limit = options.limit
        if limit is None:
            limit = len(matches) if options.json else ROWS
        _show(matches[:limit], len(matches), options, " that match")


def _show_count(number: int, options: argparse.Namespace) -> None:
    from npstream.commands.output import print_json

    if options.json:
        print_json({"count": number})
    else:
        print(number)


def _select_columns(view: Dataset, options: argparse.Namespace) -> Dataset:
    """Return the view of ``--columns``; raise ValueError if ``--row-index`` names a column."""
    if options.row_index is not None and options.row_index in (options.columns or view.columns):
        raise ValueError(f"--row-index {options.row_index!r}: a column has this name")
    return view if options.columns is None else view[list(dict.fromkeys(options.columns))]


def _samples(view: Dataset) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the row number in the dataset, and the columns, of each sample of a view."""
    names = view.columns
    for start in range(0, len(view), BLOCK):
        batch = view[start : start + BLOCK].load()  # reads only these samples
        for row, *values in zip(batch.ids.tolist(), *(batch[name] for name in names), strict=True):
            yield row, dict(zip(names, values, strict=True))


def _show(view: Dataset, total: int, options: argparse.Namespace, suffix: str = "") -> None:
    """Print the samples of a view.

    A line below a table says how many of the `total` samples are shown. It ends with `suffix`, such
    as " that match".
    """
    view = _select_columns(view, options)
    if options.json:
        from npstream.commands.output import print_json

        for row, sample in _samples(view):
            index = {} if options.row_index is None else {options.row_index: row}
            print_json(index | sample)
        return
    from npstream._core.arguments import quantity
    from npstream.commands.table import format_table

    rows = [[row, *sample.values()] for row, sample in _samples(view)]
    types = view._encodings()
    lines, omitted = format_table(["row", *types], ["", *types.values()], rows)
    size = quantity(total, "sample") + suffix
    lines.append(size if len(rows) == total else f"{len(rows):,} of {size}")
    if omitted:
        lines.append(f"{quantity(len(omitted), 'more column')}: {', '.join(omitted)}")
    print("\n".join(lines))

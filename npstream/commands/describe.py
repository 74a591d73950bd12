"""The command ``describe``."""

from __future__ import annotations

import shutil
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

    from npstream.explore.summary import Description

__all__ = ["add_describe"]

LESS_IMPORTANT = ("std", "25%", "75%", "distinct")
"""The columns that a narrow terminal does not show; the first one is dropped first."""

SAMPLE = 10_000
"""Default number of rows of the sample."""


def add_describe(commands: Commands) -> None:
    """Add ``npstream describe``."""
    describe = add_command(
        commands,
        "describe",
        "show statistics of the columns of datasets",
        _run_describe,
        "Show statistics of the columns of datasets: missing and distinct values, bounds, mean, "
        "quantiles, lengths, the most frequent value. The last lines say which rows the "
        "statistics cover.",
    )
    add = describe.add_argument
    add("urls", nargs="+", metavar="url", help="the datasets' directories or URLs")
    add("--columns", nargs="+", metavar="NAME", help="the columns to describe; all by default")
    add(
        "--sample",
        metavar="N",
        type=parse_count_option,
        default=SAMPLE,
        help=f"rows of the sample, where not all rows are read; {SAMPLE:,} by default",
    )
    add("--seed", type=int, default=0, help="seed of the sample; 0 by default")
    add_json_option(describe, "print each dataset as a line of JSON")
    add_dataset_options(describe)
    add_read_limit_option(describe)


def _run_describe(options: argparse.Namespace) -> int:
    from npstream.commands.output import print_json, run_for_each

    def show(url: str) -> None:
        with open_with_options(url, options) as dataset:
            view = dataset if options.columns is None else dataset[options.columns]
            description = view.describe(sample=options.sample, seed=options.seed)
            dataset_url = dataset._source.index.where.removesuffix("index.json").rstrip("/")
            if options.json:
                print_json(_document(dataset_url, len(dataset), description))
            else:
                print("\n".join(_lines(dataset_url, len(dataset), description)))
                if len(options.urls) > 1:
                    print()

    return run_for_each(options.urls, show)


def _document(url: str, samples: int, description: Description) -> dict[str, Any]:
    """Return a description as a JSON object, without unknown statistics."""
    columns = {}
    for name, summary in description.items():
        statistics = {key: value for key, value in vars(summary).items() if value is not None}
        del statistics["name"]
        statistics["quantiles"] = {str(p): value for p, value in summary.quantiles.items()}
        columns[name] = statistics
    return {"url": url, "samples": samples, "columns": columns}


def _lines(url: str, samples: int, description: Description) -> list[str]:
    """Return the lines of a description, which fit the terminal."""
    from npstream._core.arguments import quantity
    from npstream.commands.table import format_table

    lines = [f"{url}: {quantity(samples, 'sample')}, {quantity(len(description), 'column')}"]
    width = shutil.get_terminal_size().columns
    for headers, rows in description._tables():
        headers, rows, hidden = _drop_columns(headers, rows, width)
        table, omitted = format_table(headers, None, rows, width, left_columns=2)
        omitted = hidden + omitted
        lines += ["", *table]
        if omitted:
            lines.append(f"{quantity(len(omitted), 'more statistic')}: {', '.join(omitted)}")
    return [*lines, "", *description._origins()]


def _drop_columns(
    headers: list[str], rows: list[list[str]], width: int
) -> tuple[list[str], list[list[str]], list[str]]:
    """Drop less important columns until a table fits `width`.

    Returns
    -------
    headers : list of str
    rows : list of list of str
    hidden : list of str
        The headers of the dropped columns.
    """
    from npstream.commands.table import table_width

    hidden: list[str] = []
    for name in LESS_IMPORTANT:
        if table_width([headers, *rows]) <= width:
            break
        if name in headers:
            place = headers.index(name)
            headers, *rows = [cells[:place] + cells[place + 1 :] for cells in [headers, *rows]]
            hidden.append(name)
    return headers, rows, hidden

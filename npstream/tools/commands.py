"""Provide the commands ``npstream merge`` and ``npstream copy``.

Tested in tests/tools/test_copy.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from npstream._core.arguments import quantity, size_text

if TYPE_CHECKING:
    import argparse

    from npstream.dataset.dataset import Dataset
    from npstream.writing.report import WriteReport

__all__ = ["add_merge_and_copy"]

FILTER_ROWS = 1 << 16
"""Samples whose columns are read at a time to evaluate a condition."""

_COPY_SETTINGS = ("format", "separator", "shard_size", "shard_samples", "compression", "hashes")


def add_merge_and_copy(commands: Any) -> None:
    """Add the two commands to those of a parser.

    Parameters
    ----------
    commands : argparse._SubParsersAction
    """
    merge = commands.add_parser("merge", help="join datasets below one directory, without copying")
    merge.add_argument("urls", nargs="+", help="the datasets' directories or URLs, in order")
    merge.add_argument("out", help="the directory or URL that contains all of them")
    merge.add_argument("--no-sidecar", action="store_true", help="write no side-car")
    _add_options(merge, "storage", "driver options of the store")
    merge.set_defaults(command=run_merge)

    command = commands.add_parser("copy", help="copy samples of a dataset to a new one")
    add = command.add_argument
    add("source", help="the dataset's directory or URL")
    add("url", help="the new dataset's directory or URL")
    add("--split", help="the sub-directory to open")
    add("--columns", nargs="+", metavar="NAME", help="the columns to copy; all by default")
    add("--rows", metavar="START:STOP:STEP", help="the samples to copy, as a slice")
    add("--where", metavar="EXPRESSION", help="which samples to copy, such as 'label == 3'")
    add("--format", help="mds, jsonl, csv, tsv or xsv; that of the source by default")
    add("--separator", help="the text between two fields of xsv")
    add("--shard-size", help="maximum size of a shard before compression, such as 64MiB")
    add("--shard-samples", type=int, help="maximum number of samples of a shard")
    add("--compression", help="the codec of shards, such as zstd or zstd:7, or none")
    add("--hashes", nargs="*", metavar="HASH", help="hashes of files to store; there may be none")
    add("--no-sidecar", action="store_true", help="write no side-car")
    add("--resume", action="store_true", help="go on with a copy that was interrupted")
    add("--allow-pickle", action="store_true", help="copy columns that are pickled, too")
    _add_options(command, "source", "driver options of the source")
    _add_options(command, "storage", "driver options of the new dataset")
    command.set_defaults(command=run_copy)


def _add_options(parser: argparse.ArgumentParser, name: str, summary: str) -> None:
    parser.add_argument(f"--{name}-options", nargs="+", metavar="NAME=VALUE", help=summary)


def run_merge(options: argparse.Namespace) -> None:
    """Run ``npstream merge``."""
    from npstream.tools.merge import merge

    report = merge(
        options.urls,
        options.out,
        sidecar=False if options.no_sidecar else None,
        storage_options=_parse_options("storage", options.storage_options),
    )
    _print(report)


def run_copy(options: argparse.Namespace) -> None:
    """Run ``npstream copy``."""
    from npstream.dataset.opening import open_dataset
    from npstream.tools.copy import copy

    settings = {
        name: value for name in _COPY_SETTINGS if (value := getattr(options, name)) is not None
    }
    if settings.get("compression") == "none":
        settings["compression"] = None
    with open_dataset(
        options.source,
        split=options.split,
        storage_options=_parse_options("source", options.source_options),
        allow_pickle=options.allow_pickle,
    ) as dataset:
        view = dataset if options.rows is None else dataset[_parse_slice(options.rows)]
        if options.where is not None:
            view = _filter(view, options.where)
        report = copy(
            view,
            options.url,
            columns=options.columns,
            sidecar=not options.no_sidecar,
            resume=options.resume,
            storage_options=_parse_options("storage", options.storage_options),
            **settings,
        )
    _print(report)


def _parse_slice(text: str) -> slice:
    """Return the slice that a text such as ``100:200`` names."""
    try:
        numbers = [int(part) if part.strip() else None for part in text.split(":")]
    except ValueError:
        numbers = []
    if not 2 <= len(numbers) <= 3:
        raise ValueError(f"--rows {text!r}: expected a slice, such as 1000:2000, :100 or ::10")
    return slice(*numbers)


def _filter(view: Dataset, text: str) -> Dataset:
    """Return the samples of a view that meet a condition."""
    from npstream.explore.expression import parse

    expression = parse(text)
    expression.check(view.columns)
    columns = list(expression.columns)
    return view.filter(expression.evaluate, columns=columns, batch_size=FILTER_ROWS)


def _parse_options(name: str, texts: Iterable[str] | None) -> dict[str, Any] | None:
    """Return the driver options that the command line gives; values may be JSON."""
    if texts is None:
        return None
    options: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not key or not sign:
            raise ValueError(f"--{name}-options {text!r}: expected a name, =, and a value")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def _print(report: WriteReport) -> None:
    """Print the summary of a written dataset."""
    counts = f"{quantity(report.samples, 'sample')} in {quantity(report.shards, 'shard')}"
    print(f"{report.path}: {counts} of {size_text(report.stored_bytes)}")

"""The commands ``copy`` and ``merge``.

Tested in tests/tools/test_copy.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from npstream.commands.options import (
    Commands,
    add_command,
    add_json_option,
    add_pairs_option,
    pairs_to_dict,
    parse_count_option,
    parse_slice,
)

if TYPE_CHECKING:
    import argparse

    from npstream.writing.report import WriteReport

__all__ = ["add_copy", "add_merge", "print_report"]

_COPY_SETTINGS = ("format", "separator", "shard_size", "shard_samples", "compression", "hashes")


def add_merge(commands: Commands) -> None:
    """Add ``npstream merge``."""
    merge = add_command(
        commands, "merge", "join datasets below one directory, without copying", _run_merge
    )
    merge.add_argument("urls", nargs="+", metavar="url", help="the datasets to join, in order")
    merge.add_argument("out", help="the directory or URL that contains all of them")
    merge.add_argument("--no-sidecar", action="store_true", help="write no side-car")
    add_json_option(merge, "print the report as JSON")
    add_pairs_option(merge, "--storage-options", "driver options of the store")


def add_copy(commands: Commands) -> None:
    """Add ``npstream copy``."""
    command = add_command(commands, "copy", "copy samples of a dataset to a new one", _run_copy)
    add = command.add_argument
    add("source", help="the dataset's directory or URL")
    add("url", help="the new dataset's directory or URL")
    add("--split", metavar="NAME", help="the subdirectory to open")
    add("--columns", nargs="+", metavar="NAME", help="the columns to copy; all by default")
    add(
        "--rows",
        metavar="START:STOP:STEP",
        type=parse_slice,
        help="the samples to copy, as a slice",
    )
    add("--where", metavar="CONDITION", help="which samples to copy, such as 'label == 3'")
    add("--format", help="mds, jsonl, csv, tsv or xsv; that of the source by default")
    add("--separator", help="the text between two fields of xsv")
    add("--shard-size", metavar="SIZE", help="maximum size of a shard before compression: 64MiB")
    add(
        "--shard-samples",
        metavar="N",
        type=parse_count_option,
        help="maximum number of samples of a shard",
    )
    add("--compression", help="the codec of shards, such as zstd or zstd:7, or none")
    add("--hashes", nargs="*", metavar="HASH", help="hashes of files to store; there may be none")
    add("--no-sidecar", action="store_true", help="write no side-car")
    add("--resume", action="store_true", help="continue a copy that was interrupted")
    add("--allow-pickle", action="store_true", help="copy columns that are pickled, too")
    add_json_option(command, "print the report as JSON")
    add_pairs_option(command, "--source-options", "driver options of the source")
    add_pairs_option(command, "--storage-options", "driver options of the new dataset")


def _run_merge(options: argparse.Namespace) -> None:
    from npstream.tools.merge import merge

    report = merge(
        options.urls,
        options.out,
        sidecar=False if options.no_sidecar else None,  # None: if each dataset has one
        storage_options=pairs_to_dict(options.storage_options),
    )
    print_report(report, options)


def _run_copy(options: argparse.Namespace) -> None:
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
        storage_options=pairs_to_dict(options.source_options),
        allow_pickle=options.allow_pickle,
        implicit_read_limit=None,  # all selected samples are read in any case
    ) as dataset:
        view = dataset if options.rows is None else dataset[options.rows]
        if options.where is not None:
            view = view.query(options.where)
        report = copy(
            view,
            options.url,
            columns=options.columns,
            sidecar=not options.no_sidecar,
            resume=options.resume,
            storage_options=pairs_to_dict(options.storage_options),
            **settings,
        )
    print_report(report, options)


def print_report(report: WriteReport, options: argparse.Namespace) -> None:
    """Print the summary of a written dataset, as text or as JSON."""
    from dataclasses import asdict

    from npstream._core.arguments import quantity, size_text
    from npstream.commands.output import print_json

    if options.json:
        print_json(asdict(report))
        return
    rejected = f", {quantity(report.rejected, 'sample')} left out" if report.rejected else ""
    counts = f"{quantity(report.samples, 'sample')} in {quantity(report.shards, 'shard')}"
    print(f"{report.path}: {counts} of {size_text(report.stored_bytes)}{rejected}")

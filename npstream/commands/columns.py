"""The commands ``add-columns`` and ``remove-columns``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from npstream.commands.convert import parse_column_pair, parse_renaming
from npstream.commands.copy import print_report
from npstream.commands.options import (
    Commands,
    add_command,
    add_json_option,
    add_pairs_option,
    pairs_to_dict,
)

if TYPE_CHECKING:
    import argparse

__all__ = ["add_add_columns", "add_remove_columns"]


def add_add_columns(commands: Commands) -> None:
    """Add ``npstream add-columns``."""
    command = add_command(
        commands, "add-columns", "write columns of files beside a dataset", _run_add_columns
    )
    add = command.add_argument
    add("url", help="the dataset's directory or URL")
    add("source", nargs="+", help="files, directories, globs or URLs with the values")
    add("--kind", help="the kind of the files, such as npy; by default it is recognized")
    add(
        "--key",
        metavar="NAME",
        help="the column that matches rows to samples; by default their positions match",
    )
    add(
        "--columns",
        nargs="+",
        metavar="NAME[:ENCODING]",
        type=parse_column_pair,
        help="the columns to add; all by default",
    )
    add(
        "--rename",
        nargs="+",
        metavar="OLD=NEW",
        type=parse_renaming,
        help="new names of columns",
    )
    add_pairs_option(command, "--fill", "values of samples without a row, as JSON or text")
    add("--replace", action="store_true", help="replace columns that have these names")
    add("--resume", action="store_true", help="continue a call that was interrupted")
    add("--compression", help="the codec of shards, such as zstd or zstd:7")
    add("--shard-size", metavar="SIZE", help="maximum size of a shard before compression: 64MiB")
    add("--hashes", nargs="+", metavar="HASH", help="hashes of files to store, such as xxh3_64")
    add("--no-sidecar", action="store_true", help="write no side-car")
    add_json_option(command, "print the report as JSON")
    add_pairs_option(command, "--reader-options", "options for reading this kind of files")
    add_pairs_option(command, "--source-options", "driver options of the source")
    add_pairs_option(command, "--storage-options", "driver options of the dataset")


def add_remove_columns(commands: Commands) -> None:
    """Add ``npstream remove-columns``."""
    command = add_command(
        commands, "remove-columns", "remove columns that were added", _run_remove_columns
    )
    command.add_argument("url", help="the dataset's directory or URL")
    command.add_argument("names", nargs="+", metavar="NAME", help="the columns")
    add_pairs_option(command, "--storage-options", "driver options of the store")


def _run_add_columns(options: argparse.Namespace) -> None:
    from npstream.conversion.convert import open_input_files
    from npstream.tools.add_columns import add_columns

    columns = pairs_to_dict(options.columns)
    if columns is not None and options.key is not None:
        # `add_columns` matches rows by the key, so the files must be read with this column.
        columns = {options.key: None, **columns}
    settings: dict[str, Any] = {
        name: value
        for name in ("compression", "shard_size", "hashes")
        if (value := getattr(options, name)) is not None
    }
    try:
        data, encodings = open_input_files(
            options.source if len(options.source) > 1 else options.source[0],
            kind=options.kind,
            columns=columns,
            rename=pairs_to_dict(options.rename),
            source_options=pairs_to_dict(options.source_options),
            reader_options=pairs_to_dict(options.reader_options),
        )
        report = add_columns(
            options.url,
            data,
            key=options.key,
            fill=pairs_to_dict(options.fill),
            replace=options.replace,
            columns=encodings,
            resume=options.resume,
            sidecar=not options.no_sidecar,
            storage_options=pairs_to_dict(options.storage_options),
            **settings,
        )
    except TypeError as error:  # the data or the value of an option is wrong
        raise ValueError("\n".join([str(error), *getattr(error, "__notes__", [])])) from error
    print_report(report, options)


def _run_remove_columns(options: argparse.Namespace) -> None:
    from npstream.tools.add_columns import remove_columns

    remove_columns(
        options.url, options.names, storage_options=pairs_to_dict(options.storage_options)
    )
    print(f"{options.url}: removed {', '.join(map(repr, options.names))}")

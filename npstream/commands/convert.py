"""The command ``convert``."""

from __future__ import annotations

import argparse
import os
from typing import Any

from npstream.commands.options import (
    Commands,
    add_command,
    add_json_option,
    add_pairs_option,
    json_or_text,
    pairs_to_dict,
    parse_count_option,
)

__all__ = ["add_convert", "parse_column_pair", "parse_renaming"]


def add_convert(commands: Commands) -> None:
    """Add ``npstream convert``."""
    command = add_command(
        commands,
        "convert",
        "make a dataset of files of another format",
        _run_convert,
        "Make a dataset of Parquet, CSV, JSON lines or other files, or of a dataset.",
    )
    add = command.add_argument
    add("source", nargs="+", help="files, directories, globs or URLs to read")
    add("url", help="the dataset's directory or URL")
    add("--kind", help="the kind of the files, such as parquet; by default it is recognized")
    add(
        "--columns",
        nargs="+",
        metavar="NAME[:ENCODING]",
        type=parse_column_pair,
        help="the columns to write, in order",
    )
    add("--rename", nargs="+", metavar="OLD=NEW", type=parse_renaming, help="new names of columns")
    add("--where", metavar="CONDITION", help="which samples to write, such as 'label == 3'")
    add_pairs_option(command, "--fill", "values for missing ones, as JSON or text")
    add(
        "--workers",
        metavar="N",
        type=parse_count_option,
        default=0,
        help="processes that encode samples",
    )
    add("--resume", action="store_true", help="continue a conversion that was interrupted")
    add("--dry-run", action="store_true", help="show columns and the number of samples only")
    add_json_option(command, "print the report as JSON")
    add("--mode", choices=["x", "w", "a"], help="create the dataset, replace it, or append to it")
    add("--format", help="the format of shards: mds, jsonl, csv or tsv")
    add("--compression", help="the codec of shards, such as zstd or zstd:7")
    add("--shard-size", metavar="SIZE", help="maximum size of a shard before compression: 64MiB")
    add("--hashes", nargs="+", metavar="HASH", help="hashes of files to store, such as xxh3_64")
    add("--no-sidecar", action="store_true", help="write no side-car")
    add("--skip-errors", action="store_true", help="leave out samples that cannot be encoded")
    add(
        "--max-errors",
        metavar="N",
        type=parse_count_option,
        help="how many samples may be left out",
    )
    add("--rejects", metavar="FILE", help="a file that records the samples that are left out")
    add("--tokenizer", metavar="FILE", help="a tokenizer.json: text becomes token ids")
    add("--column", metavar="NAME", default="text", help="the column of the text, for --tokenizer")
    add(
        "--block",
        metavar="N",
        type=parse_count_option,
        help="ids of a block; by default each text is a row",
    )
    add("--separator", metavar="TOKEN", help="the token, or its id, after each text in blocks")
    add_pairs_option(command, "--token-options", "name, dtype, remainder or pad")
    add_pairs_option(command, "--reader-options", "options for reading this kind of files")
    add_pairs_option(command, "--source-options", "driver options of the source")
    add_pairs_option(command, "--storage-options", "driver options of the dataset")


def _run_convert(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from npstream.commands.copy import print_report
    from npstream.commands.output import print_json
    from npstream.conversion.convert import ConvertPlan, convert

    source = options.source if len(options.source) > 1 else options.source[0]
    try:
        report = convert(source, options.url, **_arguments(options))
    except TypeError as error:
        # `_arguments` passes valid names only, so the data or the value of an option is wrong.
        raise ValueError("\n".join([str(error), *getattr(error, "__notes__", [])])) from error
    if not isinstance(report, ConvertPlan):
        print_report(report, options)
    elif options.json:
        print_json(asdict(report))
    else:
        print(report)


def _arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `npstream.convert`."""
    arguments: dict[str, Any] = {
        "kind": options.kind,
        "columns": pairs_to_dict(options.columns),
        "rename": pairs_to_dict(options.rename),
        "where": options.where,
        "dry_run": options.dry_run,
    }
    for name in (
        "block", "mode", "format", "compression", "shard_size", "hashes", "max_errors", "rejects",
    ):  # fmt: skip
        if (value := getattr(options, name)) is not None:
            arguments[name] = value
    if options.tokenizer is not None:
        arguments |= {"tokenizer": _tokenizer(options.tokenizer), "column": options.column}
    if options.separator is not None:
        arguments["separator"] = json_or_text(options.separator)
    for name in ("fill", "token_options", "reader_options", "source_options", "storage_options"):
        if (values := pairs_to_dict(getattr(options, name))) is not None:
            arguments[name] = values
    if options.workers:
        arguments["workers"] = options.workers
    if options.resume:
        arguments["resume"] = True
    if options.no_sidecar:
        arguments["sidecar"] = False
    if options.skip_errors:
        arguments["on_error"] = "skip"
    return arguments


def parse_column_pair(text: str) -> tuple[str, str | None]:
    """Return the name and the encoding of ``NAME`` or ``NAME:ENCODING``."""
    name, colon, encoding = text.partition(":")
    if not name or (colon and not encoding):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME or NAME:ENCODING")
    return name, encoding or None


def parse_renaming(text: str) -> tuple[str, str]:
    """Return both names of ``OLD=NEW``."""
    old, sign, new = text.partition("=")
    if not old or not sign:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a name, =, and a new name")
    return old, new


def _tokenizer(path: str) -> Any:
    """Return the tokenizer from a ``tokenizer.json``, which the package `tokenizers` reads."""
    from npstream._core.optional import import_optional

    tokenizers = import_optional("tokenizers", "tokenizers", "sources", "--tokenizer")
    if not os.path.isfile(path):
        raise ValueError(f"--tokenizer {path!r}: no such file; expected a tokenizer.json")
    try:
        return tokenizers.Tokenizer.from_file(path)
    except Exception as error:  # the package raises Exception itself
        raise ValueError(f"--tokenizer {path!r}: not a tokenizer.json: {error}") from error

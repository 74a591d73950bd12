"""Provide the command ``npstream convert``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from npstream._core.arguments import quantity, size_text
from npstream._core.optional import import_optional

if TYPE_CHECKING:
    import argparse

__all__ = ["add_convert_command"]


def add_convert_command(commands: Any) -> None:
    """Add the command to those of a parser.

    Parameters
    ----------
    commands : argparse._SubParsersAction
    """
    command = commands.add_parser(
        "convert",
        help="make a dataset of files of another format",
        description="Make a dataset of Parquet, CSV, JSON lines or other files, or of a dataset.",
    )
    add = command.add_argument
    add("source", nargs="+", help="files, directories, globs or URLs to read")
    add("url", help="the dataset's directory or URL")
    add("--kind", help="the kind of the files, such as parquet; by default it is recognized")
    add("--columns", nargs="+", metavar="NAME[:ENCODING]", help="the columns to write, in order")
    add("--rename", nargs="+", metavar="OLD=NEW", help="new names of columns")
    add("--where", metavar="EXPRESSION", help="which samples to write, such as 'label == 3'")
    add("--fill", nargs="+", metavar="NAME=VALUE", help="values for missing ones, as JSON or text")
    add("--workers", type=int, default=0, help="number of processes that encode samples")
    add("--resume", action="store_true", help="go on with a conversion that was interrupted")
    add("--dry-run", action="store_true", help="show columns and the number of samples only")
    add("--json", action="store_true", help="print the report as JSON")
    add("--mode", choices=["x", "w", "a"], help="create the dataset, replace it, or append to it")
    add("--format", help="the format of shards: mds, jsonl, csv or tsv")
    add("--compression", help="the codec of shards, such as zstd or zstd:7")
    add("--shard-size", help="maximum size of a shard before compression, such as 64MiB")
    add("--hashes", nargs="+", metavar="HASH", help="hashes of files to store in the index")
    add("--no-sidecar", action="store_true", help="write no side-car")
    add("--skip-errors", action="store_true", help="leave out samples that cannot be encoded")
    add("--max-errors", type=int, help="how many samples may be left out")
    add("--rejects", metavar="FILE", help="a file that records the samples that are left out")
    add("--tokenizer", metavar="FILE", help="a tokenizer.json: text becomes token ids")
    add("--column", default="text", help="the column of the text, for --tokenizer")
    add("--block", type=int, help="the ids of a block; by default each text is a row")
    add("--separator", metavar="TOKEN", help="the token, or its id, after each text in blocks")
    add("--token-options", nargs="+", metavar="NAME=VALUE", help="name, dtype, remainder or pad")
    add("--reader-options", nargs="+", metavar="NAME=VALUE", help="options of the kind of files")
    add("--source-options", nargs="+", metavar="NAME=VALUE", help="driver options of the source")
    add("--storage-options", nargs="+", metavar="NAME=VALUE", help="driver options of the dataset")
    command.set_defaults(command=run_convert)


def run_convert(options: argparse.Namespace) -> None:
    """Run ``npstream convert``."""
    from npstream.conversion.convert import ConvertPlan, convert

    source = options.source if len(options.source) > 1 else options.source[0]
    arguments: dict[str, Any] = {
        "kind": options.kind,
        "columns": _columns(options.columns),
        "rename": None if options.rename is None else dict(_pairs("--rename", options.rename)),
        "where": options.where,
        "dry_run": options.dry_run,
    }
    for name in (
        "block",
        "mode",
        "format",
        "compression",
        "shard_size",
        "hashes",
        "max_errors",
        "rejects",
    ):
        if (value := getattr(options, name)) is not None:
            arguments[name] = value
    if options.tokenizer is not None:
        arguments |= {"tokenizer": _tokenizer(options.tokenizer), "column": options.column}
    if options.separator is not None:
        arguments["separator"] = _value(options.separator)
    for name in ("fill", "token_options", "reader_options", "source_options", "storage_options"):
        if (texts := getattr(options, name)) is not None:
            option = f"--{name.replace('_', '-')}"
            arguments[name] = {key: _value(text) for key, text in _pairs(option, texts)}
    if options.workers:
        arguments["workers"] = options.workers
    if options.resume:
        arguments["resume"] = True
    if options.no_sidecar:
        arguments["sidecar"] = False
    if options.skip_errors:
        arguments["on_error"] = "skip"
    try:
        report = convert(source, options.url, **arguments)
    except TypeError as error:  # about the data or an option, as the arguments are known ones
        raise ValueError("\n".join([str(error), *getattr(error, "__notes__", [])])) from error
    if options.json:
        print(json.dumps(asdict(report)))
    elif isinstance(report, ConvertPlan):
        print(report)
    else:
        rejected = f", {quantity(report.rejected, 'sample')} left out" if report.rejected else ""
        print(
            f"{report.path}: {quantity(report.samples, 'sample')} in "
            f"{quantity(report.shards, 'shard')} of {size_text(report.stored_bytes)}{rejected}"
        )


def _columns(texts: list[str] | None) -> dict[str, str | None] | None:
    """Return the columns to write from texts such as ``name`` and ``name:int32``."""
    if texts is None:
        return None
    columns = {}
    for text in texts:
        name, colon, encoding = text.partition(":")
        if not name or (colon and not encoding):
            raise ValueError(f"--columns {text!r}: expected NAME or NAME:ENCODING")
        columns[name] = encoding or None
    return columns


def _tokenizer(path: str) -> Any:
    """Return the tokenizer in a file of the package `tokenizers`."""
    tokenizers = import_optional("tokenizers", "tokenizers", "sources", "--tokenizer")
    if not os.path.isfile(path):
        raise ValueError(f"--tokenizer {path!r}: no such file; expected a tokenizer.json")
    try:
        return tokenizers.Tokenizer.from_file(path)
    except Exception as error:  # the package raises Exception itself
        raise ValueError(f"--tokenizer {path!r}: not a tokenizer.json: {error}") from error


def _pairs(option: str, texts: Iterable[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        name, sign, value = text.partition("=")
        if not name or not sign:
            raise ValueError(f"{option} {text!r}: expected a name, =, and a value")
        pairs.append((name, value))
    return pairs


def _value(text: str) -> Any:
    """Return a value that is written as JSON; other text is returned as it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text

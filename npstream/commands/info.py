"""The command ``info``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from npstream.commands.options import (
    Commands,
    add_command,
    add_dataset_options,
    add_json_option,
    open_with_options,
)

if TYPE_CHECKING:
    import argparse

__all__ = ["add_info"]


def add_info(commands: Commands) -> None:
    """Add ``npstream info``."""
    info = add_command(commands, "info", "show the size and the columns of datasets", _run_info)
    info.add_argument("urls", nargs="+", metavar="url", help="the datasets' directories or URLs")
    add_json_option(info, "print each dataset as a line of JSON")
    add_dataset_options(info)


def _run_info(options: argparse.Namespace) -> int:
    from npstream.commands.output import print_json, run_for_each

    def show(url: str) -> None:
        with open_with_options(url, options) as dataset:
            if not options.json:
                print(repr(dataset))
                return
            shards = dataset.shards
            print_json(
                {
                    "url": dataset._source.index.where.removesuffix("index.json").rstrip("/"),
                    "samples": len(dataset),
                    "shards": len(shards),
                    "nbytes": int(shards["bytes"].sum()),
                    "version": dataset.version,
                    "columns": dataset._encodings(),
                }
            )

    return run_for_each(options.urls, show)

"""The command ``cache`` and its actions ``info``, ``clear`` and ``fetch``.

Tested in tests/cache/test_cache.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from npstream.commands.options import (
    Commands,
    add_command,
    add_json_option,
    add_pairs_option,
    pairs_to_dict,
)

if TYPE_CHECKING:
    import argparse

__all__ = ["add_cache"]


def add_cache(commands: Commands) -> None:
    """Add ``npstream cache``."""
    cache = add_command(commands, "cache", "show, fill or empty the cache of remote datasets", None)
    actions = cache.add_subparsers(required=True, metavar="{info,clear,fetch}")
    info = add_command(
        actions, "info", "show its directory, its size and its limit", _run_cache_info
    )
    _add_directory(info)
    add_json_option(info, "print one line of JSON")
    clear = add_command(
        actions, "clear", "remove its files; running programs download them again", _run_cache_clear
    )
    _add_directory(clear)

    fetch = add_command(
        actions, "fetch", "fetch a dataset into the cache before it is read", _run_cache_fetch
    )
    add = fetch.add_argument
    add("url", help="the dataset's URL")
    add("--split", metavar="NAME", help="the subdirectory to fetch")
    add("--columns", nargs="+", metavar="NAME", help="the columns to fetch; all by default")
    add("--cache", metavar="DIRECTORY", help="the cache, if not the default one")
    add("--limit", metavar="SIZE", help="the bytes that the cache may take, such as 100GB")
    add("--index", metavar="URL", help="the side-car's directory or URL, if not the dataset's")
    add_pairs_option(fetch, "--storage-options", "driver options of the store")


def _add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory", nargs="?", metavar="DIRECTORY", help="the cache, if not the default one"
    )


def _run_cache_info(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from npstream.cache.cache import info
    from npstream.commands.output import print_json

    report = info(options.directory)
    if options.json:
        print_json(asdict(report))
    else:
        print(report)


def _run_cache_clear(options: argparse.Namespace) -> None:
    from npstream._core.arguments import quantity
    from npstream.cache.cache import clear

    print(f"{quantity(clear(options.directory), 'byte')} removed")


def _run_cache_fetch(options: argparse.Namespace) -> None:
    from npstream.cache.cache import ShardCache
    from npstream.dataset.opening import open_dataset

    with open_dataset(
        options.url,
        split=options.split,
        columns=options.columns,
        cache=options.cache,
        cache_limit=options.limit,
        index=options.index,
        storage_options=pairs_to_dict(options.storage_options),
    ) as dataset:
        print(dataset.explain())
        dataset.prefetch()
    print(ShardCache(options.cache, options.limit).info())

"""Options that several commands share, and the parsers of their values.

Tested in tests/commands/test_samples.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from npstream.dataset.dataset import Dataset

__all__ = [
    "Commands",
    "add_command",
    "add_dataset_options",
    "add_json_option",
    "add_pairs_option",
    "add_read_limit_option",
    "key_value",
    "open_with_options",
    "parse_slice",
]

Commands: TypeAlias = "argparse._SubParsersAction[Any]"
"""The commands of a parser."""

DEFAULT_READ_LIMIT = "1GiB"
"""The default limit of implicit reads, the same as for `npstream.open`."""


def add_command(
    commands: Commands,
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace], int | None] | None,
    description: str = "",
) -> argparse.ArgumentParser:
    """Add a command, and return its parser.

    Parameters
    ----------
    commands : Commands
    name : str
    summary : str
        One line for the list of commands.
    run : callable or None
        Called with the parsed arguments. It returns the exit status; None stands for 0. For a
        command that only has subcommands, `run` is None.
    description : str, default: ""
        The text of the command's own help, if it says more than `summary`.
    """
    text = description or f"{summary[0].upper()}{summary[1:]}."
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=text)
    parser.add_argument(
        "--traceback",
        action="store_true",
        default=argparse.SUPPRESS,  # the option may stand before the command, too
        help="show the traceback of an error",
    )
    if run is not None:
        parser.set_defaults(command=run, parser=parser)
    return parser


def add_dataset_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `npstream.open`."""
    add = parser.add_argument
    add("--split", metavar="NAME", help="the subdirectory to open")
    add("--index", metavar="URL", help="the side-car's directory or URL, if not the dataset's")
    add("--cache", metavar="DIRECTORY", help="the cache, if not the default one")
    add("--allow-pickle", action="store_true", help="read pickled columns, which can run code")
    add_pairs_option(parser, "--storage-options", "driver options of the store")


def add_read_limit_option(parser: argparse.ArgumentParser) -> None:
    """Add the option of commands that may read whole columns of a remote dataset."""
    parser.add_argument(
        "--read-limit",
        metavar="SIZE",
        type=_size_or_none,
        default=DEFAULT_READ_LIMIT,
        help=f"the most bytes to fetch for one column, or none; default {DEFAULT_READ_LIMIT}",
    )


def _size_or_none(text: str) -> str | None:
    from npstream._core.arguments import parse_size

    if text == "none":
        return None
    try:
        parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def add_json_option(parser: argparse.ArgumentParser, summary: str) -> None:
    """Add the option ``--json``."""
    parser.add_argument("--json", action="store_true", help=summary)


def add_pairs_option(parser: argparse.ArgumentParser, name: str, summary: str) -> None:
    """Add an option that takes pairs of a name and a value."""
    parser.add_argument(name, nargs="+", metavar="NAME=VALUE", type=key_value, help=summary)


def key_value(text: str) -> tuple[str, Any]:
    """Return the name and the value of ``NAME=VALUE``; the value may be JSON.

    The error does not show the text, which may be a password.

    Examples
    --------
    >>> key_value("port=9000"), key_value("name=x=y")
    (('port', 9000), ('name', 'x=y'))
    """
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise argparse.ArgumentTypeError("expected NAME=VALUE: a name, =, and a value")
    return name, json_or_text(value)


def json_or_text(text: str) -> Any:
    """Return the value of a text that is JSON; other text is returned unchanged.

    Examples
    --------
    >>> json_or_text("[1, 2]"), json_or_text("</s>")
    ([1, 2], '</s>')
    """
    import json

    try:
        return json.loads(text)
    except ValueError:
        return text


def pairs_to_dict(values: Iterable[tuple[str, Any]] | None) -> dict[str, Any] | None:
    """Return the pairs of an option as a dict; None if the option was not given."""
    return None if values is None else dict(values)


def parse_count_option(text: str) -> int:
    """Return a count, an integer of 0 or more; raise ArgumentTypeError for other text."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 0 or more")
    return number


def parse_slice(text: str) -> slice:
    """Return a text such as ``100:200`` as a slice.

    Examples
    --------
    >>> parse_slice("100:200"), parse_slice("::-1")
    (slice(100, 200, None), slice(None, None, -1))
    """
    try:
        numbers = [int(part) if part.strip() else None for part in text.split(":")]
    except ValueError:
        numbers = []
    if not 2 <= len(numbers) <= 3 or 0 in numbers[2:]:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a slice, such as 1000:2000, :100 or ::10"
        )
    return slice(*numbers)


def open_with_options(url: str, options: argparse.Namespace) -> Dataset:
    """Open a dataset with the options of `add_dataset_options`."""
    from npstream.dataset.opening import open_dataset

    return open_dataset(
        url,
        split=options.split,
        index=options.index,
        cache=options.cache,
        allow_pickle=options.allow_pickle,
        storage_options=pairs_to_dict(options.storage_options),
        implicit_read_limit=getattr(options, "read_limit", DEFAULT_READ_LIMIT),
    )

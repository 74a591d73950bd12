"""The parser of the command line, and the table of its commands.

Tested in tests/test_main.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from npstream import __version__
from npstream.commands.cache import add_cache
from npstream.commands.checks import (
    add_demo,
    add_index,
    add_precompile,
    add_selftest,
    add_verify,
)
from npstream.commands.columns import add_add_columns, add_remove_columns
from npstream.commands.completion import add_completion
from npstream.commands.convert import add_convert
from npstream.commands.copy import add_copy, add_merge
from npstream.commands.describe import add_describe
from npstream.commands.info import add_info
from npstream.commands.samples import add_head, add_query, add_sample

if TYPE_CHECKING:
    from npstream.commands.options import Commands

__all__ = ["ADD_COMMANDS", "build_parser"]

ADD_COMMANDS: tuple[Callable[[Commands], None], ...] = (
    add_info, add_head, add_sample, add_describe, add_query, add_verify, add_index, add_convert,
    add_merge, add_copy, add_add_columns, add_remove_columns, add_cache, add_demo, add_precompile,
    add_selftest, add_completion,
)  # fmt: skip
"""The function that adds each command, in the order of ``npstream --help``."""

_EPILOG = (
    "Exit status: 0 if all is well, 1 for a problem or an error, 2 for a mistake in the command "
    "line, 130 after Ctrl-C."
)


def build_parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return the parser of the command line.

    `words` are the arguments to parse. If they have URLs with secrets, the error messages of the
    parser do not contain the secrets.
    """

    class Parser(argparse.ArgumentParser):
        """A parser whose error messages do not contain the secrets of URLs."""

        def error(self, message: str) -> NoReturn:
            from npstream._core.redaction import redact, url_secrets

            if message.endswith("required: COMMAND"):
                message = f"{' '.join(map(repr, words))} names no command; see npstream --help"
            elif "are required: " in message and any(word.startswith("--") for word in words):
                message += (
                    "; an option such as --columns takes all words after it, so write it at the end"
                )
            super().error(redact(message, (part for word in words for part in url_secrets(word))))

    root = Parser(
        prog="npstream",
        description="Training data as a lazily loaded NumPy array.",
        epilog=_EPILOG,
    )
    root.add_argument("-v", "-V", "--version", action="version", version=f"npstream {__version__}")
    root.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    root.set_defaults(root=root)
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    for add in ADD_COMMANDS:
        add(commands)
    return root

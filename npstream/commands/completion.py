"""The command ``completion``, which prints a script that completes words in a shell.

The scripts are made from the parser, so they know all commands, options and choices. Every other
word is completed as the name of a file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import NamedTuple

from npstream.commands.options import Commands, add_command

__all__ = ["SHELLS", "Level", "add_completion", "completion_script", "iterate_levels"]


class Level(NamedTuple):
    """The possible next words after the program's name, a command, or an action of a command.

    Attributes
    ----------
    path : str
        The previous words, such as "cache info"; "" directly after the program's name.
    commands : dict of str to str
        The commands, and their summaries.
    options : dict of str to str
        The options, and their summaries.
    values : dict of str to list
        The options that take a value, and their choices. Without choices, the value is a file name.
    arguments : list of str
        The choices of the positional arguments. If empty, the next word is a file name.
    """

    path: str
    commands: dict[str, str]
    options: dict[str, str]
    values: dict[str, list[str]]
    arguments: list[str]


def add_completion(commands: Commands) -> None:
    """Add ``npstream completion``."""
    command = add_command(
        commands,
        "completion",
        "print a script that completes commands and options in a shell",
        _run_completion,
        "Print a script that completes commands and options in a shell. In bash: "
        'eval "$(npstream completion bash)". In zsh, after compinit: '
        'eval "$(npstream completion zsh)". In fish: npstream completion fish | source.',
    )
    command.add_argument("shell", choices=list(SHELLS), help="the shell")


def _run_completion(options: argparse.Namespace) -> None:
    print(completion_script(options.root, options.shell), end="")


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the script for a shell: "bash", "zsh" or "fish"."""
    return SHELLS[shell](list(iterate_levels(parser)))


def iterate_levels(parser: argparse.ArgumentParser, path: str = "") -> Iterator[Level]:
    """Yield the level of the program's name, and the levels of all commands."""
    level = Level(path, {}, {}, {}, [])
    subparsers: list[tuple[str, argparse.ArgumentParser]] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action._choices_actions:  # only these have the summaries
                level.commands[command.dest] = command.help or ""
            subparsers += [
                (f"{path} {name}".strip(), subparser) for name, subparser in action.choices.items()
            ]
            continue
        choices = [str(choice) for choice in action.choices or ()]
        if not action.option_strings:
            level.arguments.extend(choices)
        for option in action.option_strings:
            level.options[option] = action.help or ""
            if action.nargs != 0:
                level.values[option] = choices
    yield level
    for name, subparser in subparsers:
        yield from iterate_levels(subparser, name)


def _words(level: Level) -> str:
    return " ".join([*level.commands, *level.arguments])


def _bash(levels: list[Level]) -> str:
    """Return the script for bash 3.2 and later."""
    # Each pattern is the path so far, a space, and the next word. Directly after the program's
    # name the path is empty, so the pattern begins with the space.
    paths = " | ".join(
        f'"{"" if " " in level.path else " "}{level.path}"' for level in levels if level.path
    )
    lines = [
        "# Completion of npstream in bash, made by: npstream completion bash",
        "_npstream() {",
        "    local IFS=$' \\t\\n' current=${COMP_WORDS[COMP_CWORD]} path='' i word",
        "    local previous=${COMP_WORDS[COMP_CWORD-1]} words='' options=''",
        "    COMPREPLY=()",
        "    for ((i = 1; i < COMP_CWORD; i++)); do",
        "        word=${COMP_WORDS[i]}",
        '        case "$path $word" in',
        f"            {paths}) path=${{path:+$path }}$word ;;",
        "        esac",
        "    done",
        '    case "$path $previous" in',
    ]
    for level in levels:
        for option, choices in level.values.items():
            if choices:
                reply = f'COMPREPLY=($(compgen -W "{" ".join(choices)}" -- "$current"))'
                lines.append(f'        "{level.path} {option}") {reply}; return ;;')
    with_value = " | ".join(
        f'"{level.path} {option}"' for level in levels for option in level.values
    )
    # After other options there is no reply, so bash completes a file name (``-o default``).
    lines += [f"        {with_value}) return ;;"] if with_value else []
    lines += ["    esac", '    case "$path" in']
    for level in levels:
        lines.append(
            f'        "{level.path}") words="{_words(level)}"; '
            f'options="{" ".join(level.options)}" ;;'
        )
    lines += [
        "    esac",
        "    [[ $current == -* ]] && words=$options",
        '    [[ -n $words ]] && COMPREPLY=($(compgen -W "$words" -- "$current"))',
        "    return 0",
        "}",
        "complete -o default -F _npstream npstream",
    ]
    return "\n".join(lines) + "\n"


def _zsh(levels: list[Level]) -> str:
    lines = [
        "#compdef npstream",
        "# Completion of npstream in zsh, made by: npstream completion zsh",
        "_npstream() {",
        "    local path_='' word",
        "    local -a paths",
        f"    paths=({' '.join(_quote(level.path) for level in levels if level.path)})",
        "    for word in ${words[2,CURRENT-1]}; do",
        "        (( ${paths[(Ie)${path_:+$path_ }$word]} )) && path_=${path_:+$path_ }$word",
        "    done",
        '    case "$path_ ${words[CURRENT-1]}" in',
    ]
    for level in levels:
        for option, choices in level.values.items():
            reply = f"compadd -- {' '.join(choices)}" if choices else "_files"
            lines.append(f"        {_quote(f'{level.path} {option}')}) {reply}; return ;;")
    lines += ["    esac", "    local -a options commands", '    case "$path_" in']
    for level in levels:
        options, commands = (
            " ".join(_quote(f"{_escape_colons(name)}:{summary}") for name, summary in table.items())
            for table in (level.options, level.commands | dict.fromkeys(level.arguments, ""))
        )
        lines.append(f"        {_quote(level.path)}) options=({options}); commands=({commands}) ;;")
    lines += [
        "    esac",
        "    if [[ $PREFIX == -* ]]; then",
        "        _describe option options",
        "    elif (( $#commands )); then",
        "        _describe command commands",
        "    else",
        "        _files",
        "    fi",
        "}",
        "compdef _npstream npstream",
    ]
    return "\n".join(lines) + "\n"


def _fish(levels: list[Level]) -> str:
    paths = " ".join(_quote(level.path) for level in levels if level.path)
    lines = [
        "# Completion of npstream in fish, made by: npstream completion fish",
        "function __npstream_is",
        "    set -l path ''",
        "    for word in (commandline -opc)[2..]",
        f'        if contains -- (string trim "$path $word") {paths}',
        '            set path (string trim "$path $word")',
        "        end",
        "    end",
        '    test "$path" = "$argv[1]"',
        "end",
    ]
    for level in levels:
        start = f"complete -c npstream -n {_quote(f'__npstream_is {_quote(level.path)}')}"
        for name, summary in (level.commands | dict.fromkeys(level.arguments, "")).items():
            lines.append(f"{start} -f -a {name} -d {_quote(summary)}")
        for option, summary in level.options.items():
            flag = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
            choices = level.values.get(option)
            value = "" if choices is None else " -r"
            if choices:
                value = f" -x -a {_quote(' '.join(choices))}"
            lines.append(f"{start} {flag}{value} -d {_quote(summary)}")
    return "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    """Quote a text, so that both zsh and fish read it as one word."""
    return "'" + text.replace("\\", "\\\\").replace("'", "'\\''") + "'"


def _escape_colons(text: str) -> str:
    return text.replace(":", "\\:")


SHELLS: dict[str, Callable[[list[Level]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
"""Name of a shell -> the function that makes its script."""

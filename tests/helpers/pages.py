"""Run the code in Markdown pages, and compare its output with the output that they show.

The languages of the fenced blocks that run:

- `python` begins an example, in an empty directory. `python continuation` goes on with it.
- `python file=NAME` writes the block to a file in the directory of the example.
- `python fixture:NAME` has a fixture of pytest as a global of this name.
- `python needs:PACKAGE` is skipped, with its example, if the package is not installed.
- `text`, right after Python code, is what the code prints. Three dots stand for any text, as in
  doctest.
- `console` has commands after "$ ", run by bash in the directory of the example. The lines after
  a command are what it prints.

The directory of the example is shown as /home/me.

`python tests/helpers/pages.py PAGE...` runs pages, and writes what their code prints into them.

Tested in tests/end_to_end/test_pages.py.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import io
import os
import re
import subprocess
import sys
import tempfile
import types
from dataclasses import dataclass, field
from pathlib import Path

FENCE = re.compile(r"^(?P<indent> *)```(?P<info>.*)$")
PROMPT = "$ "
END = "-- end of a command --"
KILLED = re.compile(r"^\S+: line \d+: +\d+ (Killed|Terminated) .*$", re.M)


class Mismatch(AssertionError):
    """A block prints something else than the page shows."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    options: tuple[str, ...]
    text: str
    start: int
    """The index of the line with the opening fence."""
    stop: int
    """The index of the line after the closing fence."""
    indent: str

    @property
    def fixtures(self) -> list[str]:
        """Names of the fixtures that the block uses."""
        return _values(self.options, "fixture:")

    @property
    def packages(self) -> list[str]:
        """Names of optional packages that the block needs."""
        return _values(self.options, "needs:")

    @property
    def file(self) -> str | None:
        """Name of the file that the block is written to, if any."""
        names = _values(self.options, "file=")
        return names[0] if names else None


def _values(options: tuple[str, ...], prefix: str) -> list[str]:
    """Return the rest of each option that begins with `prefix`."""
    return [option.removeprefix(prefix) for option in options if option.startswith(prefix)]


@dataclass
class Example:
    """Blocks that run one after the other in one directory."""

    path: Path
    blocks: list[Block] = field(default_factory=list)
    outputs: dict[Block, Block] = field(default_factory=dict)
    """The block that shows the output, for each block that has one."""

    @property
    def fixtures(self) -> list[str]:
        """Names of the fixtures that the blocks use."""
        return sorted({name for block in self.blocks for name in block.fixtures})

    @property
    def missing(self) -> list[str]:
        """Optional packages that the blocks need, and that are not installed."""
        packages = sorted({name for block in self.blocks for name in block.packages})
        return [name for name in packages if importlib.util.find_spec(name) is None]

    @property
    def line(self) -> int:
        return self.blocks[0].start + 1


def parse(text: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    lines = text.splitlines()
    blocks, index = [], 0
    while index < len(lines):
        fence = FENCE.match(lines[index])
        start = index
        index += 1
        if fence is None:
            continue
        while index < len(lines) and lines[index].strip() != "```":
            index += 1
        indent = fence["indent"]
        body = [line.removeprefix(indent) for line in lines[start + 1 : index]]
        text = "\n".join([*body, ""])
        language, *options = fence["info"].split() or [""]
        index += 1
        blocks.append(Block(language, tuple(options), text, start, index, indent))
    return blocks


def examples(path: Path) -> list[Example]:
    """Return the examples of a page."""
    text = path.read_text()
    lines = text.splitlines()
    results: list[Example] = []
    before: Block | None = None
    for block in parse(text):
        if block.language == "text":
            is_next = before is not None and not "".join(lines[before.stop : block.start]).strip()
            if before is not None and is_next and before.language == "python" and not before.file:
                results[-1].outputs[before] = block
        elif block.language in ("python", "console"):
            continues = block.language == "console" or block.file or "continuation" in block.options
            if not continues or not results:
                results.append(Example(path))
            results[-1].blocks.append(block)
        before = block
    return results


def run(example: Example, fixtures: dict[str, object] | None = None) -> dict[Block, str]:
    """Run an example in the current directory; return what each block prints."""
    namespace = types.ModuleType("example").__dict__
    namespace.update(fixtures or {})
    printed = {}
    for block in example.blocks:
        if block.file:
            Path(block.file).write_text(block.text)
        elif block.language == "console":
            printed[block] = _run_console(block)
        else:
            printed[block] = _run_python(example.path, block, namespace)
    return printed


def check(example: Example, fixtures: dict[str, object]) -> None:
    """Run an example in the current directory; raise `Mismatch` if it prints something else."""
    for block, printed in run(example, fixtures).items():
        if block.language == "console":
            shown = block.text
        else:
            shown = example.outputs[block].text if block in example.outputs else ""
        if not doctest.OutputChecker().check_output(shown, printed, doctest.ELLIPSIS):
            raise Mismatch(
                f"{example.path}:{block.start + 1} prints\n{printed}\nand the page shows\n{shown}\n"
                f"Write what it prints into the page: python tests/helpers/pages.py {example.path}"
            )


def update(path: Path) -> None:
    """Run the examples of a page, and write what they print into it."""
    lines = path.read_text().splitlines()
    printed = []
    for example in examples(path):
        with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
            printed += [
                (block, example.outputs.get(block), text) for block, text in run(example).items()
            ]
    for block, output, text in reversed(printed):
        if block.language == "console":
            start, stop, language = block.start, block.stop, "console"
        elif output is not None:
            start, stop, language = output.start, output.stop, "text"
        else:
            start, stop, language = block.stop, block.stop, "text"
        old = output.text if output else block.text
        if doctest.OutputChecker().check_output(old, text, doctest.ELLIPSIS):
            continue
        if text:
            new = [f"```{language}", *text.splitlines(), "```"]
            if start == stop:
                new.insert(0, "")
            lines[start:stop] = [f"{block.indent}{line}".rstrip() for line in new]
        elif output is not None:
            raise ValueError(f"{path}:{output.start + 1}: the code before this prints nothing")
    path.write_text("\n".join([*lines, ""]))


def _run_python(path: Path, block: Block, namespace: dict[str, object]) -> str:
    # The empty lines give tracebacks the line numbers of the page.
    code = compile("\n" * (block.start + 1) + block.text, str(path), "exec")
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        exec(code, namespace)
    printed = _hide_directory(stream.getvalue())
    return "".join(f"{line.rstrip()}\n" for line in printed.splitlines())


def _hide_directory(text: str) -> str:
    return text.replace(str(Path.cwd()), "/home/me")


def _run_console(block: Block) -> str:
    """Return the commands of a console with what they print."""
    commands: list[list[str]] = []
    for line in block.text.splitlines():
        if line.startswith(PROMPT):
            commands.append([line.removeprefix(PROMPT)])
        elif commands and commands[-1][-1].endswith("\\"):
            commands[-1].append(line)
    script = [
        f'python() {{ "{sys.executable}" "$@"; }}',
        'npstream() { python -m npstream "$@"; }',
        "export -f python npstream",
    ]
    for command in commands:
        script += [*command, f"echo; echo '{END}'"]
    variables = {"COLUMNS": "80", "NPSTREAM_TRACEBACK": "", "PYTHONWARNINGS": ""}
    process = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=250,  # less than pytest's timeout of a test
        check=True,
    )
    # If a command is killed, an interactive shell prints only "Killed" or "Terminated". This shell
    # also prints the line of the script, the process id and the command.
    text = KILLED.sub(r"\1", process.stdout)
    output = _hide_directory(text).split(f"\n{END}\n")
    lines = []
    for command, text in zip(commands, output, strict=False):
        lines += [PROMPT + command[0], *command[1:]]
        lines += [line.rstrip() for line in text.rstrip("\n").split("\n") if text.strip("\n")]
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        update(Path(name).resolve())

"""The program that runs the examples of pages reports wrong outputs, and corrects them."""

from __future__ import annotations

from pathlib import Path

import pages
import pytest

PAGE = """
# Title

```python
import sys

x = 2
print(x * 3)
```

```text
6
```

Text.

```python continuation
print("a long line", x)
```

```text
a ... 2
```

```python file=program.py
import sys

print("with", sys.argv[1])
```

```console
$ python program.py one
with one
$ pwd; python program.py \\
  two
/home/me
with two
$ python -c 'exit(3)'; echo $?
3
$ python -c 'import os, signal; os.kill(os.getpid(), signal.SIGKILL)'
Killed
```

1. Item:

   ```python
   print("of another example", "x" in globals())
   ```

   ```text
   of another example False
   ```
"""


def run_examples(path: Path) -> None:
    for example in pages.examples(path):
        pages.check(example, {})


def mismatch(page: str, tmp_path, monkeypatch) -> str:
    """Run the examples of a page; return the message of its first wrong output."""
    path = tmp_path / "page.md"
    path.write_text(page)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pages.Mismatch) as raised:
        run_examples(path)
    return str(raised.value)


def test_a_page_that_shows_what_it_prints_passes(tmp_path, monkeypatch):
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    monkeypatch.chdir(tmp_path)
    first, second = pages.examples(path)
    assert [len(first.blocks), len(second.blocks)] == [4, 1]
    assert (first.line, second.line) == (4, 46)  # the lines of their first fences in PAGE
    run_examples(path)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("6\n```", "7\n```", 4),
        ("a ... 2", "a ... 3", 17),
        ("with one", "with two", 31),
        ("example False", "example True", 46),
    ],
)
def test_a_wrong_output_is_reported_and_mended(tmp_path, monkeypatch, old, new, line):
    assert PAGE.count(old) == 1
    page = PAGE.replace(old, new)
    assert f"page.md:{line} prints" in mismatch(page, tmp_path, monkeypatch)
    path = tmp_path / "page.md"
    pages.update(path)
    # The corrected output is the printed one, without an ellipsis.
    assert path.read_text() == PAGE.replace(
        "a ... 2", "a long line 2" if "..." in old else "a ... 2"
    )


def test_a_missing_output_is_reported_and_written(tmp_path, monkeypatch):
    page = PAGE.replace("```text\n6\n```\n\n", "")
    assert "prints\n6\n" in mismatch(page, tmp_path, monkeypatch)
    path = tmp_path / "page.md"
    pages.update(path)
    assert path.read_text() == PAGE


def test_an_output_that_code_does_not_print_is_reported(tmp_path, monkeypatch):
    page = PAGE.replace("print(x * 3)", "pass")
    assert "the page shows\n6\n" in mismatch(page, tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="prints nothing"):
        pages.update(tmp_path / "page.md")


def test_errors_have_the_line_of_the_page(tmp_path, monkeypatch):
    path = tmp_path / "page.md"
    path.write_text(PAGE.replace("print(x * 3)", "1 / 0"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZeroDivisionError) as raised:
        pages.check(pages.examples(path)[0], {})
    frame = raised.traceback[-1]
    assert (frame.path, frame.lineno + 1) == (path, 8)


def test_fixtures_of_blocks_are_globals(tmp_path, monkeypatch):
    path = tmp_path / "page.md"
    path.write_text("```python fixture:place\nprint(place)\n```\n\n```text\nhere\n```\n")
    monkeypatch.chdir(tmp_path)
    (example,) = pages.examples(path)
    assert example.fixtures == ["place"]
    pages.check(example, {"place": "here"})


def test_an_example_names_the_packages_that_are_missing(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(
        "```python needs:numpy\n```\n\n```python file=run.py needs:no_such_package\n```\n\n"
        "```python\n```\n"
    )
    first, second = pages.examples(path)
    assert (first.missing, second.missing) == (["no_such_package"], [])

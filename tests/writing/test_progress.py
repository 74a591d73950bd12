"""A write shows its progress with ``progress=True``, and by default on a terminal or notebook."""

from __future__ import annotations

import io
import sys
import threading

import pytest
from started import started_threads

import npstream
from npstream._core import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def no_display_delay(monkeypatch):
    monkeypatch.setattr(progress, "_WRITE_DELAY", 0.001)
    monkeypatch.setattr(progress, "_WRITE_INTERVAL", 0.001)


@pytest.fixture
def no_tqdm_auto(monkeypatch):
    """Make the import of tqdm.auto fail. That of tqdm.std, whose bar is text, still works."""
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)


class Source:
    """Yields samples, and ends only after progress is shown."""

    def __init__(self, shown):
        self._shown = shown

    def __iter__(self):
        for number in range(1000):
            yield {"x": number, "text": "text"}
        while not self._shown():
            threading.Event().wait(0.001)


@pytest.mark.usefixtures("no_display_delay", "no_tqdm_auto")
@pytest.mark.parametrize("progress_argument", [True, None])
def test_a_line_of_text(progress_argument, tmp_path, monkeypatch):
    stderr = Terminal() if progress_argument is None else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    npstream.write(
        tmp_path, Source(lambda: "1,000 samples" in stderr.getvalue()), progress=progress_argument
    )
    line = stderr.getvalue().split("\r")[-1]
    assert line.startswith("1,000 samples, ")
    assert "KiB, " in line
    assert "samples/s, " in line
    assert line.endswith("/s  \n")


@pytest.mark.usefixtures("no_display_delay")
def test_tqdm_is_used_where_it_is_installed(tmp_path, monkeypatch):
    pytest.importorskip("tqdm")
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    npstream.write(tmp_path, Source(lambda: "writing: " in stderr.getvalue()), progress=True)
    last = stderr.getvalue().split("\r")[-1]
    assert last.startswith("writing: 1.00k samples")
    assert "KiB" in last


@pytest.mark.usefixtures("no_display_delay", "no_tqdm_auto")
def test_a_notebook_without_widgets_shows_a_bar_of_text(tmp_path, monkeypatch):
    pytest.importorskip("tqdm")
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    npstream.write(tmp_path, Source(lambda: "writing: " in stderr.getvalue()))
    assert "Warning" not in stderr.getvalue()


@pytest.mark.usefixtures("no_display_delay")
@pytest.mark.parametrize("progress_argument", [False, None])
def test_nothing_is_shown(progress_argument, tmp_path, capsys):
    samples = ({"x": number} for number in range(100_000))  # for longer than the delay of 1 ms
    npstream.write(tmp_path, samples, progress=progress_argument)
    assert capsys.readouterr() == ("", "")


def test_a_short_write_shows_nothing(tmp_path, monkeypatch):
    stderr = Terminal()
    monkeypatch.setattr(progress, "_WRITE_DELAY", 1000)
    monkeypatch.setattr(sys, "stderr", stderr)
    npstream.write(tmp_path, [{"x": 1}])
    assert stderr.getvalue() == ""


@pytest.mark.usefixtures("no_display_delay", "no_tqdm_auto")
def test_an_exception_ends_the_display(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())

    def failing():
        yield {"x": 1}
        raise LookupError

    with pytest.raises(LookupError):
        npstream.write(tmp_path / "out", failing(), progress=True)
    assert not started_threads("npstream-progress")


def test_a_process_without_standard_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    npstream.write(tmp_path, [{"x": 1}], progress=True)
    assert len(npstream.open(tmp_path)) == 1

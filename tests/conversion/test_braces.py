"""Brace expansion, compared with bash and with the package `braceexpand`."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from npstream.conversion.braces import expand_braces

PATTERNS = [
    "s-{000..003}.tar", "{a,b}{1,2}", "{a,{b,c}}d", "{3..1}", "{0..10..5}", "{08..11}", "{-2..1}",
    "{x}", "{}", "{a", "a}", "{a,b", "x{,y}", "{1..2}{a,b}{3..4}", "{1..a}", "{a..}", "{{1..2}}",
    "{{a,b},c}", "{01..3}", "{1..03}", "{5..5}", "{-01..1}", "{0..4..-2}", "a{b}{c,d}", "{a,b}}",
]  # fmt: skip


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_names_are_those_of_bash():
    script = "\n".join(f"echo {pattern}" for pattern in PATTERNS)
    lines = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    expected = [line.split() for line in lines.stdout.splitlines()]
    assert [expand_braces(pattern) for pattern in PATTERNS] == expected


def test_names_are_those_of_webdataset():
    braceexpand = pytest.importorskip("braceexpand").braceexpand
    for pattern in PATTERNS[:9]:  # for unbalanced braces, which follow, `braceexpand` raises
        assert expand_braces(pattern) == list(braceexpand(pattern))


@pytest.mark.parametrize("pattern", ["{0..999999999999}", "{1..2000}" * 3, "{a,b}" * 30])
def test_too_many_names_raise_before_they_are_made(pattern):
    with pytest.raises(ValueError, match="at most 1,000,000"):
        expand_braces(pattern)

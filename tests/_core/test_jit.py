"""Loading and compiling kernels: when, how often, and whatever happens meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from npstream._core import jit

BEGIN = """
import logging, os, signal, sys, threading
import numpy as np
from npstream._core import jit
from npstream.shards.kernels import little_endian, touch

NONE = np.zeros(0, np.int64)
NUMBER = np.frombuffer(b"\\x07\\x02", np.uint8)

def check():
    assert touch.compiled()(NONE, NONE) == 0
    assert little_endian.compiled()(NUMBER.ctypes.data, 2) == 0x207

def during(begins):
    '''Have something happen, once, while a kernel is compiled.'''
    compile_now = jit._compile
    def compiling(*args):
        jit._compile = compile_now
        begins()
        return compile_now(*args)
    jit._compile = compiling
"""


@pytest.fixture
def run(tmp_path):
    """Return a function that runs code in a process; its compiled code is kept in `tmp_path`."""

    def run(code: str, **environment: str) -> str:
        return ends_well(start(code, tmp_path, environment))

    return run


def start(code: str, cache: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + textwrap.dedent(code)],
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache), **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def ends_well(process: subprocess.Popen[str]) -> str:
    """Wait for a process, which must succeed, and return what it wrote to stderr."""
    try:
        _, errors = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == 0, errors
    return errors


def files(cache: Path) -> list[Path]:
    """Return the files of compiled code: indices, and code."""
    return sorted(cache.rglob("*.nb[ic]"))


# When kernels are compiled.


def test_small_work_is_not_compiled(run, tmp_path):
    run(
        """
        for _ in range(1 << 5):
            assert touch.for_size(1 << 10) is touch.py_func
        assert "numba" not in sys.modules
        """
    )
    assert not files(tmp_path)


def test_a_kernel_without_code_on_disk_waits_longer(run, tmp_path):
    """Numba is loaded to know; then a cold kernel runs as Python where a known one is loaded."""
    code = """
        assert jit.IMPORT_THRESHOLD < 40_000 < jit.COMPILE_THRESHOLD
        found = touch.for_size(40_000)
        assert found is touch.{}
        assert touch.is_loaded is {}
        check()
        assert touch.is_loaded
    """
    run(code.format("py_func", False))
    run(code.format("compiled()", True))


def test_large_work_is_compiled_at_once(run):
    run("assert touch.for_size(jit.COMPILE_THRESHOLD + 1) is touch.compiled()")


def test_always_compile(run):
    run("jit.always_compile(); assert touch.for_size(1) is touch.compiled()")


# What is said of it.


def test_a_notice_comes_once_on_a_machine(run, tmp_path):
    code = """
        jit.NOTICE_SECONDS = 0.0
        assert not jit._has_warned
        check()
    """
    errors = run(code)
    assert errors.count("npstream compiles its kernels (now npstream.shards.kernels.touch)") == 1
    assert "once on this machine" in errors
    assert str(tmp_path) in errors
    assert errors.count("\n") == 1
    for path in files(tmp_path):
        path.unlink()
    assert not run(code)  # another process compiles them at the same time


def test_a_notice_can_be_silenced(run):
    assert not run(
        """
        jit.NOTICE_SECONDS = 0.0
        logging.getLogger("npstream").setLevel(logging.ERROR)
        check()
        """
    )


def test_little_is_compiled_without_a_notice(run):
    assert not run("jit.NOTICE_SECONDS = 600.0; check()")


# Files of compiled code.


def test_compiled_code_is_found_again(run, tmp_path):
    run("check()")
    before = [(path, path.stat().st_mtime_ns) for path in files(tmp_path)]
    run("check(); assert not touch.compiled().stats.cache_misses")
    assert [(path, path.stat().st_mtime_ns) for path in files(tmp_path)] == before
    assert len(before) == 4


@pytest.mark.parametrize("keep", [0, 1, 20, -1])
@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_damaged_files_are_not_read(run, tmp_path, kind, keep):
    run("check()")
    for path in tmp_path.rglob(f"*.{kind}"):
        path.write_bytes(path.read_bytes()[:keep])
    run("check()")


def test_a_full_disk_is_no_error(run, tmp_path):
    run(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        check()
        """
    )
    assert not files(tmp_path)


def test_without_a_place_for_compiled_code(run, tmp_path):
    errors = run(
        """
        import numba.core.caching
        jit.NOTICE_SECONDS = 0.0
        numba.core.caching.CompileResultCacheImpl._locator_classes = []
        check()
        """
    )
    assert "in every process" in errors
    assert "NUMBA_CACHE_DIR" in errors
    assert not files(tmp_path)


def test_code_of_another_processor_is_not_run(run, tmp_path):
    run("check()", NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
    generic = files(tmp_path)
    run("check(); assert touch.compiled().stats.cache_misses")
    assert len(files(tmp_path)) > len(generic)
    run("check(); assert touch.compiled().stats.cache_hits")


def test_processes_share_a_directory(tmp_path):
    processes = [start("check()", tmp_path, {}) for _ in range(4)]
    for process in processes:
        ends_well(process)


# Interrupts, forks and threads.


def test_an_interrupt_ends_the_wait_and_not_the_work(run):
    run(
        """
        interrupted = threading.Event()
        def interrupt():
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupted.wait(60)
        during(interrupt)
        dispatcher = touch.compiled()
        try:
            dispatcher(NONE, NONE)
        except KeyboardInterrupt:
            interrupted.set()
        assert interrupted.is_set()
        assert dispatcher(NONE, NONE) == 0
        assert sum(dispatcher.stats.cache_misses.values()) == 1
        check()
        """
    )


def test_an_interrupt_while_numba_loads(run):
    run(
        """
        interrupted = threading.Event()
        load = jit._primitives
        def loading():
            jit._primitives = load
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupted.wait(60)
            return load()
        jit._primitives = loading
        try:
            touch.compiled()
        except KeyboardInterrupt:
            interrupted.set()
        assert interrupted.is_set()
        check()
        """
    )


def test_a_fork_waits_for_what_is_compiled(run):
    """A child of a process in which a thread compiles compiles on its own."""
    run(
        """
        begun, forks = threading.Event(), threading.Event()
        os.register_at_fork(before=forks.set)  # runs before the hooks that were there
        def compiling():
            begun.set()
            assert forks.wait(60)
        during(compiling)
        thread = threading.Thread(target=check)
        thread.start()
        assert begun.wait(60)
        if (child := os.fork()) == 0:
            signal.alarm(200)
            check()
            os._exit(0)
        thread.join()
        assert os.waitpid(child, 0)[1] == 0
        check()
        """
    )


def test_threads_compile_after_extensions_are_loaded(run):
    run(
        """
        from numba.core import entrypoints
        steps, waiting = [], threading.Semaphore(0)
        init_all, run_in_thread = entrypoints.init_all, jit._run_in_thread
        def slow():
            entrypoints.init_all = init_all
            steps.append("begin")
            for _ in range(3):
                waiting.acquire()
            init_all()
            steps.append("end")
        def counted(*args):
            waiting.release()
            return run_in_thread(*args)
        entrypoints.init_all, jit._run_in_thread = slow, counted
        during(lambda: steps.append("compile"))
        failed = []
        def read():
            try:
                check()
            except BaseException as error:
                failed.append(error)
        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed, failed
        assert steps[:2] == ["begin", "end"]
        assert steps.index("compile") > 1
        """
    )


def test_kernels_compile_while_the_interpreter_ends(run):
    """No thread can be started then."""
    run("import atexit; atexit.register(check)")


# Kernels that call kernels.


@jit.kernel
def _halve(number):
    return number // 2


@jit.kernel
def _steps(numbers, counts):
    for k in range(numbers.size):
        number = int(numbers[k])
        while number > 1:
            number = _halve(number)
            counts[k] += 1
    return _halve(numbers.size)


@jit.kernel
def _both(numbers, counts):
    first = _steps(numbers, counts)
    return first + _steps(numbers[:2], counts[2:])


def test_parts_of_parts_are_linked():
    numbers = np.array([1, 2, 5, 1023, 1 << 40])
    compiled, python = np.zeros((2, 5), np.int64)
    assert _both.compiled()(numbers, compiled) == _both.py_func(numbers, python) == 3
    assert compiled.tolist() == python.tolist() == [0, 1, 2, 10, 40]
    assert _steps.compiled()(numbers, compiled) == 2  # a part of others, on its own

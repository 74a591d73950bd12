"""When kernels are compiled, how compiled code is cached, and interrupts and forks meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from npstream._core import jit
from npstream._core.jit import u32

BEGIN = """
import logging, os, signal, sys, threading
import numpy as np
from npstream._core import jit
from npstream.shards.kernels import load_little_endian, touch_pages

# A shell that starts the tests in the background makes them ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)

NONE = np.zeros(0, np.int64)
NUMBER = np.frombuffer(b"\\x07\\x02", np.uint8)

def run_kernels():
    '''Compile both kernels if necessary, and check their results.'''
    assert touch_pages.compiled()(NONE, NONE) == 0
    assert load_little_endian.compiled()(NUMBER.ctypes.data, 2) == 0x207

def before_compiling(action):
    '''Call `action` once, in the thread that compiles a kernel, just before it compiles.'''
    compile_now = jit._compile
    def compile_after_action(*args):
        jit._compile = compile_now
        action()
        return compile_now(*args)
    jit._compile = compile_after_action
"""


@pytest.fixture
def run(tmp_path):
    """Return a function that runs code in a process, with `tmp_path` as Numba's cache."""

    def run(code: str, **environment: str) -> str:
        return stderr_of(start(code, tmp_path, environment))

    return run


def start(code: str, cache: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + textwrap.dedent(code)],
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache), **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def stderr_of(process: subprocess.Popen[str]) -> str:
    """Wait for a process, which must succeed, and return its stderr."""
    try:
        _, errors = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == 0, errors
    return errors


def files(cache: Path) -> list[Path]:
    """Return the files of Numba's cache: indices, and code."""
    return sorted(cache.rglob("*.nb[ic]"))


# When kernels are compiled.


def test_kernels_run_as_python_for_few_rows(run, tmp_path):
    run(
        """
        for _ in range(1 << 2):
            assert touch_pages.for_size(1 << 13) is touch_pages.py_func
        assert "numba" not in sys.modules
        """
    )
    assert not files(tmp_path)


def test_a_kernel_without_code_on_disk_is_compiled_only_for_more_rows(run, tmp_path):
    """Between the two thresholds, Numba is imported, but only a cached kernel is used."""
    code = """
        assert jit.IMPORT_THRESHOLD < 40_000 < jit.COMPILE_THRESHOLD
        function = touch_pages.for_size(40_000)
        assert function is touch_pages.{}
        assert touch_pages.is_loaded is {}
        run_kernels()
        assert touch_pages.is_loaded
    """
    run(code.format("py_func", False))
    run(code.format("compiled()", True))


def test_kernels_are_compiled_at_once_for_many_rows(run):
    run("assert touch_pages.for_size(jit.COMPILE_THRESHOLD + 1) is touch_pages.compiled()")


def test_always_compile_compiles_for_a_single_row(run):
    run("jit.always_compile(); assert touch_pages.for_size(1) is touch_pages.compiled()")


# The warning about compilation.


def test_the_warning_is_logged_once_on_a_machine(run, tmp_path):
    code = """
        jit.NOTICE_SECONDS = 0.0
        assert not jit._has_warned
        run_kernels()
    """
    errors = run(code)
    assert errors.count("npstream compiles its kernels, which takes seconds") == 1
    assert "once on this machine" in errors
    assert str(tmp_path) in errors
    assert errors.count("\n") == 1
    for path in files(tmp_path):
        path.unlink()
    assert not run(code)  # the first process has warned, although its code is gone


def test_the_warning_can_be_silenced(run):
    assert not run(
        """
        jit.NOTICE_SECONDS = 0.0
        logging.getLogger("npstream").setLevel(logging.ERROR)
        run_kernels()
        """
    )


def test_a_short_compilation_logs_no_warning(run):
    assert not run("jit.NOTICE_SECONDS = 600.0; run_kernels()")


# Numba's cache on disk.


def test_a_second_process_uses_the_cached_code(run, tmp_path):
    run("run_kernels()")
    before = [(path, path.stat().st_mtime_ns) for path in files(tmp_path)]
    run("run_kernels(); assert not touch_pages.compiled().stats.cache_misses")
    assert [(path, path.stat().st_mtime_ns) for path in files(tmp_path)] == before
    assert len(before) == 4  # an index and the code of each of the two kernels


@pytest.mark.parametrize("keep", [0, 1, 20, -1])
@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_kernels_run_if_cache_files_are_damaged(run, tmp_path, kind, keep):
    run("run_kernels()")
    for path in tmp_path.rglob(f"*.{kind}"):
        path.write_bytes(path.read_bytes()[:keep])
    run("run_kernels()")


def test_kernels_run_if_the_disk_is_full(run, tmp_path):
    run(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        run_kernels()
        """
    )
    assert not files(tmp_path)


def test_kernels_run_if_no_directory_is_writable(run, tmp_path):
    errors = run(
        """
        import numba.core.caching
        jit.NOTICE_SECONDS = 0.0
        numba.core.caching.CompileResultCacheImpl._locator_classes = []
        run_kernels()
        """
    )
    assert "in every process" in errors
    assert "NUMBA_CACHE_DIR" in errors
    assert not files(tmp_path)


def test_cached_code_of_another_processor_is_not_used(run, tmp_path):
    run("run_kernels()", NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
    generic = files(tmp_path)
    run("run_kernels(); assert touch_pages.compiled().stats.cache_misses")
    assert len(files(tmp_path)) > len(generic)
    run("run_kernels(); assert touch_pages.compiled().stats.cache_hits")


def test_processes_share_a_cache_directory(tmp_path):
    processes = [start("run_kernels()", tmp_path, {}) for _ in range(4)]
    for process in processes:
        stderr_of(process)


# Interrupts, forks and threads.


def test_an_interrupt_ends_the_wait_but_not_the_compilation(run):
    run(
        """
        interrupted = threading.Event()
        def interrupt():
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupted.wait(60)
        before_compiling(interrupt)
        dispatcher = touch_pages.compiled()
        try:
            dispatcher(NONE, NONE)
        except KeyboardInterrupt:
            interrupted.set()
        assert interrupted.is_set()
        assert dispatcher(NONE, NONE) == 0
        assert sum(dispatcher.stats.cache_misses.values()) == 1
        run_kernels()
        """
    )


def test_an_interrupt_ends_the_wait_for_the_import_of_numba(run):
    run(
        """
        interrupted = threading.Event()
        primitives = jit._primitives
        def interrupted_primitives():
            jit._primitives = primitives
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupted.wait(60)
            return primitives()
        jit._primitives = interrupted_primitives
        try:
            touch_pages.compiled()
        except KeyboardInterrupt:
            interrupted.set()
        assert interrupted.is_set()
        run_kernels()
        """
    )


def test_a_fork_waits_for_a_compilation_in_another_thread(run):
    """Afterwards the child can compile, too."""
    run(
        """
        compiling, forking = threading.Event(), threading.Event()
        os.register_at_fork(before=forking.set)  # runs before the hooks registered earlier
        def wait_for_fork():
            compiling.set()
            assert forking.wait(60)
        before_compiling(wait_for_fork)
        thread = threading.Thread(target=run_kernels)
        thread.start()
        assert compiling.wait(60)
        if (child := os.fork()) == 0:
            signal.alarm(200)
            run_kernels()
            os._exit(0)
        thread.join()
        assert os.waitpid(child, 0)[1] == 0
        run_kernels()
        """
    )


def test_threads_compile_after_extensions_are_loaded(run):
    run(
        """
        from numba.core import entrypoints
        steps, waiting = [], threading.Semaphore(0)
        init_all, run_in_thread = entrypoints.init_all, jit._run_in_thread
        def init_after_three_threads_wait():
            entrypoints.init_all = init_all
            steps.append("begin")
            for _ in range(3):
                waiting.acquire()
            init_all()
            steps.append("end")
        def run_and_count(*args):
            waiting.release()
            return run_in_thread(*args)
        entrypoints.init_all = init_after_three_threads_wait
        jit._run_in_thread = run_and_count
        before_compiling(lambda: steps.append("compile"))
        failed = []
        def run_in_new_thread():
            try:
                run_kernels()
            except BaseException as error:
                failed.append(error)
        threads = [threading.Thread(target=run_in_new_thread) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed, failed
        assert steps[:2] == ["begin", "end"]
        assert steps.index("compile") > 1
        """
    )


def test_kernels_compile_during_interpreter_shutdown(run):
    """Since version 3.12, Python starts no threads then."""
    errors = run(
        """
        import atexit
        def run_and_report():
            run_kernels()
            print("finished", file=sys.stderr)
        atexit.register(run_and_report)
        """
    )
    assert "finished" in errors  # the exit status is 0 even if the function raises


# Kernels that call kernels.


@jit.kernel
def _halve(number):
    return number // 2


@jit.kernel
def _halvings(numbers, counts):
    for k in range(numbers.size):
        number = int(numbers[k])
        while number > 1:
            number = _halve(number)
            counts[k] += 1
    return _halve(numbers.size)


@jit.kernel
def _halvings_twice(numbers, counts):
    first = _halvings(numbers, counts)
    return first + _halvings(numbers[:2], counts[2:])


def test_callees_of_callees_are_linked():
    numbers = np.array([1, 2, 5, 1023, 1 << 40])
    compiled, python = np.zeros((2, 5), np.int64)
    compiled_result = _halvings_twice.compiled()(numbers, compiled)
    assert compiled_result == _halvings_twice.py_func(numbers, python) == 3
    # The counts are 0, 1, 2, 9 and 40. The second call adds the counts of 1 and 2 to the third and
    # the fourth.
    assert compiled.tolist() == python.tolist() == [0, 1, 2, 10, 40]
    assert _halvings.compiled()(numbers, compiled) == 2  # a callee can be called on its own


@jit.kernel
def _low_halves(numbers, halves):
    for k in range(numbers.size):
        halves[k] = u32(numbers[k])
    return u32(u32(numbers[0]) + numbers[1])


def test_u32_reduces_modulo_2_to_the_32():
    numbers = np.array([(1 << 32) - 1, 1, -1, 5 << 40 | 7, 1 << 31])
    compiled, python = np.zeros((2, 5), np.uint32)
    assert _low_halves.compiled()(numbers, compiled) == _low_halves.py_func(numbers, python) == 0
    assert compiled.tolist() == python.tolist() == (numbers % (1 << 32)).tolist()

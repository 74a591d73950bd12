"""`map` and `workers`: the same dataset as without, or nothing and an error."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from destinations import assert_no_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from started import started_children

import npstream
from npstream.errors import ColumnError
from npstream.writing import workers as workers_module
from npstream.writing.inputs.recognition import table_of
from npstream.writing.mapping import table_rows


def read(path):
    return [dict(sample) for sample in npstream.open(path)]


def doubled(number):
    return {"x": 2 * number, "text": "é" * (number % 7)}


def various(number):
    """Return no sample, one, or several, of each kind of iterable."""
    if number % 5 == 0:
        return None
    if number % 5 == 1:
        return [{"x": number}, {"x": -number}]
    if number % 5 == 2:
        return ({"x": number + k} for k in range(3))
    if number % 5 == 3:
        return npstream.Batch({"x": np.array([number, number])})
    return {"x": number}


@pytest.fixture(params=[0, 1, 3])
def workers(request):
    return request.param


# Order and bytes


@pytest.mark.parametrize("function", [doubled, various])
def test_the_dataset_is_that_of_the_mapped_samples(function, workers, tmp_path):
    count = 1000
    expected = []
    for number in range(count):
        result = function(number)
        if isinstance(result, npstream.Batch):
            result = [{"x": int(x)} for x in result["x"]]
        elif isinstance(result, dict):
            result = [result]
        expected += result or []
    columns = {"x": "int"} if function is various else None
    report = npstream.write(
        tmp_path / "out", range(count), map=function, workers=workers, columns=columns,
        shard_size=3000,
    )  # fmt: skip
    assert report.samples == len(expected)
    assert report.shards > 3
    assert read(tmp_path / "out") == expected
    npstream.write(tmp_path / "direct", expected, columns=columns, shard_size=3000)
    for file in (tmp_path / "direct").glob("shard.*"):
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()


@given(st.lists(st.integers(0, 4), max_size=60), st.integers(0, 2))
@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
def test_the_order_is_that_of_the_input(counts, workers):
    import tempfile

    def several(pair):
        number, count = pair
        return ({"x": number, "k": k} for k in range(count))

    with tempfile.TemporaryDirectory() as folder:
        npstream.write(
            f"{folder}/out", enumerate(counts), map=several, workers=workers,
            columns={"x": "int", "k": "uint8"},
        )  # fmt: skip
        ds = npstream.open(f"{folder}/out")
        expected = [(n, k) for n, count in enumerate(counts) for k in range(count)]
        assert list(zip(ds["x"].load().tolist(), ds["k"].load().tolist(), strict=True)) == expected


def test_a_slow_worker_does_not_change_the_order(tmp_path):
    """Sample 1 is finished after at least one later sample."""
    is_later_done = multiprocessing.Event()

    def slow(number):
        if number == 1:
            assert is_later_done.wait(60)
        elif number > 1:
            is_later_done.set()
        return {"x": number}

    npstream.write(tmp_path, range(50), map=slow, workers=2, columns={"x": "int"})
    assert npstream.open(tmp_path)["x"].load().tolist() == list(range(50))


def test_workers_encode_without_map(tmp_path):
    samples = [{"x": k, "a": np.full(3, k, np.uint16)} for k in range(500)]
    npstream.write(tmp_path, samples, workers=2)
    assert [(s["x"], s["a"].tolist()) for s in read(tmp_path)] == [(k, [k] * 3) for k in range(500)]


def test_the_first_sample_decides_on_columns(workers, tmp_path):
    def map_later_numbers(number):
        return {"x": np.float32(number)} if number > 20 else None

    report = npstream.write(tmp_path / "a", range(50), map=map_later_numbers, workers=workers)
    assert report.columns == {"x": "float32"}
    assert npstream.open(tmp_path / "a")["x"].load().tolist() == list(range(21, 50))
    with pytest.raises(ValueError, match="no samples and no columns="):
        npstream.write(tmp_path / "b", range(50), map=lambda number: None, workers=workers)
    assert_no_files(str(tmp_path / "b"))


def test_tables_are_mapped_row_by_row(workers, tmp_path):
    columns = {"x": np.arange(700, dtype=np.int16), "s": [str(k) for k in range(700)]}
    npstream.write(tmp_path / "table", columns)

    def add(sample):
        return {**sample, "y": sample["x"] + np.int16(1), "n": len(sample["s"])}

    for data in (columns, npstream.open(tmp_path / "table")):
        name = type(data).__name__
        report = npstream.write(tmp_path / name, data, map=add, workers=workers)
        assert report.columns == {"x": "int16", "s": "str", "y": "int16", "n": "int"}
        ds = npstream.open(tmp_path / name)
        assert ds["y"].load().tolist() == list(range(1, 701))
        assert ds["n"].load().tolist() == [len(str(k)) for k in range(700)]


def test_rows_of_a_dataset_as_samples(tmp_path):
    data = {
        **{"i": [1, 2], "f": np.array([0.5, 1], np.float32), "s": ["é", ""], "b": [b"\xff", b""]},
        **{"a": np.arange(4, dtype=np.uint8).reshape(2, 2), "j": [{"k": [1]}, None]},
        "r": [np.arange(3), np.arange(2)],
    }
    columns = {"i": "int", "f": "float32", "s": "str", "b": "bytes", "a": "ndarray:uint8:2"}
    npstream.write(tmp_path, data, columns={**columns, "j": "json", "r": "ndarray:int64"})
    ds = npstream.open(tmp_path)
    for sample, expected in zip(table_rows(table_of(ds)), ds, strict=True):
        assert list(sample) == list(expected)
        for name, value in expected.items():
            assert np.array_equal(sample[name], value)


# Errors


class UnpicklableError(Exception):
    """An exception that cannot be sent to another process."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")
        self.lock = threading.Lock()


@pytest.mark.parametrize("bad", [0, 1, 333])
def test_an_exception_of_map_publishes_nothing_and_names_the_sample(bad, workers, tmp_path):
    def fail(number):
        if number == bad:
            raise LookupError("not there")
        return {"x": number}

    with pytest.raises(LookupError, match="not there") as caught:
        npstream.write(tmp_path / "out", range(500), map=fail, workers=workers, shard_size=500)
    assert f"in map=, sample {bad} of data" in caught.value.__notes__
    if workers:
        trace = caught.value.__notes__[-1]
        assert trace.startswith("in a worker process:\nTraceback")
        assert 'raise LookupError("not there")' in trace
    assert_no_files(str(tmp_path / "out"))
    assert not started_children()


def test_an_exception_of_a_generator_of_map(workers, tmp_path):
    def fail(number):
        yield {"x": number}
        if number == 7:
            raise LookupError("not there")

    with pytest.raises(LookupError) as caught:
        npstream.write(tmp_path / "out", range(20), map=fail, workers=workers)
    assert "in map=, sample 7 of data" in caught.value.__notes__
    assert_no_files(str(tmp_path / "out"))


def test_an_exception_that_cannot_be_sent(tmp_path):
    def fail(number):
        raise UnpicklableError("this", "that")

    message = "a worker raised UnpicklableError: this and that"
    with pytest.raises(RuntimeError, match=message) as caught:
        npstream.write(tmp_path / "out", range(5), map=fail, workers=1)
    assert "in map=, sample 0 of data" in caught.value.__notes__


def test_stop_iteration_of_map_is_an_error(workers, tmp_path):
    with pytest.raises(RuntimeError, match="raised StopIteration") as caught:
        npstream.write(tmp_path / "out", range(5), map=lambda x: next(iter(())), workers=workers)
    assert "in map=, sample 0 of data" in caught.value.__notes__
    assert_no_files(str(tmp_path / "out"))


@pytest.mark.parametrize("result", [5, "text", b"bytes", np.zeros(3)])
def test_a_map_that_returns_no_samples(result, workers, tmp_path):
    with pytest.raises(TypeError, match="map= returned a"):
        npstream.write(tmp_path / "out", range(5), map=lambda x: result, workers=workers)
    with pytest.raises(TypeError, match="sample 0 is of type int"):
        npstream.write(tmp_path / "out", range(5), map=lambda x: [x], workers=workers)
    assert_no_files(str(tmp_path / "out"))


def test_an_exception_of_the_source(workers, tmp_path):
    def source():
        for number in range(40):
            yield {"x": number}
        raise LookupError("the source is gone")

    with pytest.raises(LookupError) as caught:
        npstream.write(tmp_path / "out", source(), workers=workers)
    assert any("sample 40" in note for note in caught.value.__notes__)
    assert_no_files(str(tmp_path / "out"))
    assert not started_children()


@pytest.mark.parametrize("bad", [0, 1, 333])
def test_a_value_that_is_refused(bad, workers, tmp_path):
    samples = [{"x": k if k != bad else "no"} for k in range(500)]
    with pytest.raises(TypeError, match=f"sample {bad}: column 'x' .* expected an int") as caught:
        npstream.write(tmp_path / "out", samples, columns={"x": "int"}, workers=workers)
    assert not getattr(caught.value, "__notes__", [])
    samples = [{"x": k} if k != bad else {"y": 1} for k in range(500)]
    with pytest.raises(ColumnError, match=f"sample {bad}: no column 'x'"):
        npstream.write(tmp_path / "out", samples, columns={"x": "int"}, workers=workers)
    assert_no_files(str(tmp_path / "out"))


def test_numbers_in_errors_are_those_of_the_input(workers, tmp_path):
    def fail(number):
        return [{"x": number}, {"x": "no" if number == 9 else number}]

    with pytest.raises(TypeError, match="sample 9: column 'x'"):
        npstream.write(tmp_path / "out", range(20), map=fail, workers=workers)


@pytest.mark.parametrize("bad", [0, 1, 333])
def test_a_worker_that_is_killed_is_an_error(bad, tmp_path):
    def fail(number):
        if number == bad:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"x": number}

    with pytest.raises(RuntimeError, match=r"worker process .* killed by SIGKILL"):
        npstream.write(tmp_path / "out", range(10**6), map=fail, workers=2)
    assert_no_files(str(tmp_path / "out"))
    assert not started_children()


def test_a_worker_that_exits_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="ended, with exit code 3"):
        npstream.write(tmp_path / "out", range(10), map=lambda number: os._exit(3), workers=1)


def test_samples_larger_than_pipes(tmp_path):
    """Neither side waits for the other to read."""
    samples = ({"x": bytes([k]) * (3 << 20)} for k in range(20))
    npstream.write(tmp_path, samples, map=lambda s: [s, s], workers=2, shard_size="8MiB")
    assert [value[0] for value in npstream.open(tmp_path)["x"]] == [k // 2 for k in range(40)]


@pytest.mark.parametrize("function", [None, dict])
@pytest.mark.parametrize("columns", [None, {"x": "ndarray:int64", "n": "int"}])
def test_a_source_may_yield_the_same_objects_again(function, columns, workers, tmp_path):
    def source():
        sample = {"x": np.zeros(3, np.int64)}
        for number in range(1000):
            sample["x"][:] = sample["n"] = number
            yield sample

    npstream.write(tmp_path, source(), map=function, columns=columns, workers=workers)
    ds = npstream.open(tmp_path)
    assert ds["n"].load().tolist() == list(range(1000))
    assert [array.tolist() for array in ds["x"]] == [[number] * 3 for number in range(1000)]


def test_map_may_return_the_same_objects_again(workers, tmp_path):
    def repeated(number):
        sample = {"x": np.zeros(2, np.int64)}
        for k in range(3):
            sample["x"][:] = 3 * number + k
            yield sample

    npstream.write(tmp_path, range(100), map=repeated, workers=workers)
    assert [array[0] for array in npstream.open(tmp_path)["x"]] == list(range(300))


def test_the_source_is_not_read_far_ahead(tmp_path):
    """Workers have two batches each, and the parent one more for each."""
    read_numbers = []

    def source():
        for number in range(200):
            read_numbers.append(number)
            yield {"x": bytes(1 << 20), "n": number}

    counts = []  # of samples that are read, at each result
    run = workers_module.WorkerPool.run

    def run_and_count(self, *arguments):
        for result in run(self, *arguments):
            counts.append(len(read_numbers))
            yield result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers_module.WorkerPool, "run", run_and_count)
        npstream.write(tmp_path, source(), workers=2, columns={"x": "bytes", "n": "int"})
    # 6 batches of one sample are pending. This result and the next sample are read, too.
    assert all(count <= number + 8 for number, count in enumerate(counts))


@pytest.mark.parametrize("workers", [-1, 1.5, True, "2"])
def test_numbers_of_workers_that_make_no_sense(workers, tmp_path):
    with pytest.raises(ValueError, match="workers="):
        npstream.write(tmp_path / "out", [{"x": 1}], workers=workers)


# Processes


SCRIPT = """
import multiprocessing, os, sys
import npstream

def double(number):
    return {"x": 2 * number}

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[2])
    npstream.write(sys.argv[1], range(100), map=double, workers=2)
    print(npstream.open(sys.argv[1])["x"].load().sum())
"""


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_start_methods(method, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "out"), method]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.stdout == "9900\n", done.stderr


INTERRUPTED = """
import os, signal, sys, npstream

# A shell that starts the tests in the background makes them ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)

def stuck(number):
    if number == 30:
        print("here", flush=True)
        signal.pause()
    return {"x": number}

try:
    npstream.write(sys.argv[1], range(10**6), map=stuck, workers=2, shard_size=100)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_ends_workers_and_leaves_nothing(tmp_path):
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "out")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "here\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        assert process.stdout.read() == ""  # all processes that have this pipe have ended
        assert process.stderr.read() == ""
    assert_no_files(str(tmp_path / "out"))


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "out")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    ) as process:
        assert process.stdout.readline() == "here\n"
        process.kill()
        # One worker is stuck in the user's function; a signal lets it go on, and it ends.
        process.wait()
        os.killpg(process.pid, signal.SIGALRM)
        assert process.stdout.read() == ""

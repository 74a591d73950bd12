"""Iterations leave out or replace samples that cannot be read, the same way everywhere."""

from __future__ import annotations

import io

import numpy as np
import pytest
from broken_samples import break_samples

import npstream
from npstream.errors import FormatError
from npstream.iteration.failures.guard import (
    MAX_ATTEMPTS,
    NEIGHBORHOOD,
    GuardedPiece,
    SampleGuard,
)
from npstream.iteration.failures.record import FailureRecord, UserError
from npstream.iteration.partition import Partition

N = 2400
GLOBAL_BATCH = 24
BROKEN = np.sort(np.random.default_rng(1).choice(N, N // 100, replace=False))
MASK = np.random.default_rng(2).random(N) >= 0.1


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("broken") / "data"
    columns = {"text": [str(i) * (i % 5) for i in range(N)], "label": np.arange(N)}
    npstream.write(path, columns, shard_size="8KiB", hashes=())
    break_samples(path, BROKEN.tolist())
    return path


@pytest.fixture(scope="module")
def ds(path):
    return npstream.open(path)


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    path = tmp_path_factory.mktemp("intact") / "data"
    npstream.write(path, {"label": np.arange(N)}, shard_size="8KiB")
    return npstream.open(path)


def settings(mode, **others):
    return {
        "global_batch_size": GLOBAL_BATCH, "shuffle": npstream.Shuffle(block="16KiB", lanes=2),
        "seed": 7, "on_error": mode, "valid": MASK, **others,
    }  # fmt: skip


def global_batches(iterations, count=None):
    """Return the sorted ids of all ranks, for each batch."""
    iterators = [iter(iteration) for iteration in iterations]
    batches = []
    for parts in zip(*iterators, strict=count is None):
        for part in parts:
            assert part["label"].tolist() == part.ids.tolist()
            assert len(part.ids) == len(part.repeated)
        batches.append(np.sort(np.concatenate([part.ids for part in parts])).tolist())
        if len(batches) == count:
            break
    return batches


def resume(ds, state, world, mode, **others):
    """Return the iterations of all ranks, with a loaded state."""
    iterations = [ds.iter(rank, world, **settings(mode, **others)) for rank in range(world)]
    for iteration in iterations:
        iteration.load_state_dict(state)
    return iterations


@pytest.mark.parametrize("mode", ["skip", "replace"])
def test_any_world_and_any_resumed_run_have_the_same_global_batches(ds, mode):
    whole = ds.iter(0, 1, **settings(mode))
    batches, states = [], [whole.state_dict()]
    for batch in whole:
        batches.append(np.sort(batch.ids).tolist())
        states.append(whole.state_dict())
    assert len(batches) == -(-MASK.sum() // GLOBAL_BATCH)
    for world in (2, 3, 8):
        ranks = [ds.iter(rank, world, **settings(mode)) for rank in range(world)]
        assert global_batches(ranks) == batches
        failures = sorted(failure for rank in ranks for failure in rank.failures)
        assert failures == sorted(whole.failures)
    for step in range(0, len(batches), 7):
        world = (1, 2, 3, 8)[step % 4]
        ranks = resume(ds, states[step], world, mode)
        assert global_batches(ranks, 2) == batches[step : step + 2]


def test_skipped_samples_only_make_batches_shorter(ds, intact):
    shuffle = {"shuffle": npstream.Shuffle(block=None), "seed": 3, "batch_size": 100}
    left = [batch.ids for batch in ds.iter(0, 1, on_error="skip", **shuffle)]
    right = [batch.ids for batch in intact.iter(0, 1, **shuffle)]
    assert len(left) == len(right)
    for ids, expected in zip(left, right, strict=True):
        np.testing.assert_array_equal(ids, expected[~np.isin(expected, BROKEN)])


def test_only_broken_samples_are_replaced(ds, intact):
    shuffle = {"shuffle": npstream.Shuffle(block=None), "seed": 3, "batch_size": 100}
    batches = ds.iter(0, 1, on_error="replace", **shuffle)
    ids = np.concatenate([batch.ids for batch in batches])
    expected = np.concatenate([batch.ids for batch in intact.iter(0, 1, **shuffle)])
    is_broken = np.isin(expected, BROKEN)
    np.testing.assert_array_equal(ids[~is_broken], expected[~is_broken])
    assert not np.isin(ids, BROKEN).any()
    # A replacement that is broken, too, is a failure at the same position. The last one counts.
    replacements = {failure.position: failure.replacement for failure in batches.failures}
    expected = [replacements[position] for position in np.flatnonzero(is_broken)]
    np.testing.assert_array_equal(ids[is_broken], expected)


def test_samples_and_batches_have_the_same_replacements(ds):
    batches = ds.iter(0, 1, batch_size=10, shuffle=True, on_error="replace")
    samples = ds.iter(0, 1, shuffle=True, on_error="replace")
    ids = np.concatenate([batch.ids for batch in batches]).tolist()
    assert [sample["label"] for sample in samples] == ids
    assert sorted(samples.failures) == sorted(batches.failures)


@pytest.mark.parametrize("mode", ["skip", "replace"])
def test_threads_read_the_same(ds, mode):
    settings = {"batch_size": 10, "shuffle": True, "on_error": mode, "valid": MASK}
    expected = ds.iter(0, 1, threads=0, **settings)
    batches = ds.iter(0, 1, threads=3, **settings)
    pairs = [[(b.ids.tolist(), b["label"].tolist()) for b in it] for it in (batches, expected)]
    assert pairs[0] == pairs[1]
    assert sorted(batches.failures) == sorted(expected.failures)


def test_failures_are_counted_and_listed(ds):
    batches = ds.iter(0, 1, batch_size=100, on_error="skip")
    assert sum(batch.n for batch in batches) == N - len(BROKEN)
    assert [failure.id for failure in batches.failures] == BROKEN.tolist()
    assert [failure.position for failure in batches.failures] == BROKEN.tolist()
    first = batches.failures[0]
    assert first.replacement is None
    assert first.epoch == 0
    with pytest.raises(FormatError) as error:
        ds[int(BROKEN[0])]
    assert first.reason == str(error.value)
    for _ in batches:
        pass
    assert len(batches.failures) == 2 * len(BROKEN)


def test_more_than_max_errors_end_the_loop(ds):
    batches = ds.iter(0, 1, batch_size=100, on_error="skip", max_errors=5)
    with pytest.raises(RuntimeError, match="6 samples could not be read"):
        list(batches)
    list(ds.iter(0, 1, batch_size=100, on_error="skip", max_errors=len(BROKEN)))


def test_errors_are_raised_by_default(ds):
    with pytest.raises(FormatError):
        list(ds.iter(0, 1, batch_size=100))


def test_a_batch_without_readable_samples_is_empty(ds):
    batches = [*ds[BROKEN].iter(0, 1, batch_size=6, on_error="skip")]
    assert [batch.n for batch in batches] == [0] * (len(BROKEN) // 6)
    assert all(batch["label"].shape == (0,) and len(batch["text"]) == 0 for batch in batches)


def test_a_neighborhood_without_readable_samples_raises(ds):
    message = rf"{MAX_ATTEMPTS} replacements of its position \d+ cannot be read"
    with pytest.raises(RuntimeError, match=message):
        list(ds[BROKEN].iter(0, 1, batch_size=6, on_error="replace"))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("mode", ["skip", "replace"])
def test_workers_of_a_loader_read_the_same(ds, mode, workers):
    pytest.importorskip("torch")
    from npstream.torch import DataLoader

    expected = ds.iter(0, 1, batch_size=100, shuffle=True, on_error=mode)
    ids = [batch.ids.tolist() for batch in expected]
    loader = DataLoader(
        ds.iter(0, 1, batch_size=100, shuffle=True, on_error=mode), num_workers=workers,
        multiprocessing_context="fork",
    )  # fmt: skip
    assert [batch.ids.tolist() for batch in loader] == ids
    assert sorted(loader.dataset.failures) == sorted(expected.failures)


def double(sample):
    if sample["label"] % 100 == 17:
        raise KeyError("a bug")
    return sample["label"] * 2


def test_samples_whose_transform_raises_are_replaced(ds):
    samples = ds.iter(0, 1, transform=double, on_error="replace")
    values = np.array([*samples])
    expected = 2 * np.arange(N)
    fails = np.isin(np.arange(N), BROKEN) | (np.arange(N) % 100 == 17)
    np.testing.assert_array_equal(values[~fails], expected[~fails])
    assert not np.isin(values // 2, np.flatnonzero(fails)).any()
    reasons = {f.id: f.reason for f in samples.failures}
    assert reasons[17] == "KeyError: 'a bug'"


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("batch_size", [None, 10])
def test_items_become_tensors(ds, batch_size, threads):
    torch = pytest.importorskip("torch")
    settings = {"on_error": "replace", "to": "torch", "threads": threads}
    items = ds.iter(0, 1, batch_size=batch_size, **settings)
    assert all(isinstance(item["label"], torch.Tensor) for item in items)


def jpeg(seed: int) -> bytes:
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg")
    return file.getvalue()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    pytest.importorskip("PIL")
    path = tmp_path_factory.mktemp("images") / "data"
    bodies = [b"damaged" if i % 10 == 3 else jpeg(i) for i in range(60)]
    rows = {"image": bodies, "label": np.arange(60)}
    npstream.write(path, rows, columns={"image": "jpeg", "label": "int"})
    return npstream.open(path)


@pytest.mark.parametrize("crop", ["center", "random"])
def test_images_that_cannot_be_decoded_are_skipped_or_replaced(images, crop):
    decode = {"image": {"crop": crop, "crop_size": 4}}
    bad = np.arange(60) % 10 == 3
    batches = images.iter(0, 1, batch_size=16, decode=decode, on_error="skip", last="short")
    read = [*batches]
    np.testing.assert_array_equal(np.concatenate([b.ids for b in read]), np.flatnonzero(~bad))
    assert [failure.id for failure in batches.failures] == np.flatnonzero(bad).tolist()
    if crop == "center":
        good = images[np.flatnonzero(~bad)].load(decode=decode)["image"]
        np.testing.assert_array_equal(np.concatenate([b["image"] for b in read]), good)
    batches = images.iter(0, 1, batch_size=16, decode=decode, on_error="replace", last="short")
    read = [*batches]
    ids = np.concatenate([b.ids for b in read])
    np.testing.assert_array_equal(ids[~bad], np.flatnonzero(~bad))
    assert not bad[ids].any()
    samples = [*images.iter(0, 1, decode=decode, on_error="replace")]
    assert [sample["label"] for sample in samples] == ids.tolist()
    stacked = np.concatenate([b["image"] for b in read])
    np.testing.assert_array_equal(np.stack([sample["image"] for sample in samples]), stacked)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"on_error": "ignore"}, "expected 'raise', 'skip', 'replace'"),
        ({"max_errors": 3}, "the first error is raised"),
        ({"on_error": "skip"}, "ranks would differ"),
        ({"on_error": "skip", "batch_size": 2, "batched": False}, "ranks would differ"),
        ({"on_error": "replace", "max_errors": -1}, "max_errors"),
        ({"on_error": "replace", "transform": double, "transform_workers": 2}, "replaced where"),
    ],
)
def test_settings_that_do_not_fit_are_refused(ds, arguments, text):
    with pytest.raises(ValueError, match=text):
        ds.iter(0, 1, **arguments)


def test_a_replacement_depends_only_on_seed_epoch_position_and_attempt():
    def guard(seed=0, epoch=0, world=1, size=10_000):
        part = Partition(size, 0, world, 1)
        return SampleGuard(True, seed, epoch, part, lambda rows: None, FailureRecord())

    positions = range(0, 10_000, 37)
    first = [guard().replacement(p, 0) for p in positions]
    assert first == [guard(world=8).replacement(p, 0) for p in positions]
    for position, new in zip(positions, first, strict=True):
        assert new != position
        assert new // NEIGHBORHOOD == position // NEIGHBORHOOD
    for other in (guard(seed=1), guard(epoch=1)):
        assert first != [other.replacement(p, 0) for p in positions]
    assert first != [guard().replacement(p, 1) for p in positions]


def test_a_sample_that_is_replaced_twice_is_recorded_by_its_last_replacement():
    record = FailureRecord()
    guard = SampleGuard(True, 0, 0, Partition(N, 0, 1, 1), lambda rows: None, record)
    damaged, refused = guard.replacement(5, 0), guard.replacement(5, 1)

    def read(piece, lookup):
        if damaged in piece[0]:
            raise FormatError("damaged")
        return piece[0].tolist()

    def transform(sample):
        if sample in (5, refused):
            raise UserError("transform=", KeyError("a bug"))
        return sample

    piece = GuardedPiece(guard, (np.array([5]), np.array([False]), np.array([5])))
    (last,) = piece.transformed(lambda part: part.read(read), transform)
    failures = [(failure.id, failure.replacement) for failure in record.list()]
    assert failures == [(5, damaged), (damaged, refused), (refused, last)]


class FailingAhead:
    """A read-ahead that fails while it takes the third piece."""

    def __init__(self):
        self.opened = 0

    def __call__(self, pieces):
        self.opened += 1
        window = []
        for piece in pieces:
            if self.opened == 1 and piece[0][0] == 2:
                raise FormatError("damaged")
            window.append(piece)
            if len(window) > 1:
                yield window.pop(0), None
        for piece in window:
            yield piece, None


def test_pieces_that_a_failed_read_ahead_had_taken_are_read():
    pieces = [(np.array([k]), np.array([False]), np.array([k])) for k in range(6)]
    guard = SampleGuard(True, 0, 0, Partition(6, 0, 1, 1), lambda rows: None, FailureRecord())
    open_ahead = FailingAhead()
    read = [int(piece[0][0]) for piece, _ in guard.read_ahead(open_ahead, iter(pieces))]
    assert read == [0, 1, 2, 3, 4, 5]
    assert open_ahead.opened == 2


def test_an_error_of_the_order_is_raised():
    def pieces():
        yield np.array([0]), np.array([False]), np.array([0])
        raise FormatError("no chunks")

    guard = SampleGuard(True, 0, 0, Partition(6, 0, 1, 1), lambda rows: None, FailureRecord())
    with pytest.raises(RuntimeError, match="no chunks"):
        list(guard.read_ahead(FailingAhead(), pieces()))

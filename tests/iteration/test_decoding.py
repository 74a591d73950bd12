"""Loops over decoded images: order, states, damage, threads and memory."""

from __future__ import annotations

import gc
import io
import os
import pickle
import weakref

import numpy as np
import pytest
from PIL import Image
from started import started_threads

import npstream
from npstream.errors import FormatError
from npstream.reading.images import columns as image_columns

COUNT = 60


def encode(image, format="PNG"):
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def make_pictures(count=COUNT):
    """Return the pixels of each row; row k has k in its first pixel."""
    arrays = np.random.default_rng(0).integers(0, 256, (count, 12, 10, 3), np.uint8)
    arrays[:, 0, 0, 0] = np.arange(count)
    return arrays


PICTURES = make_pictures()


def write(path, damaged=(), **options):
    bodies = [encode(Image.fromarray(array)) for array in PICTURES]
    for row in damaged:
        bodies[row] = bodies[row][:-30]
    samples = ({"image": body, "n": n} for n, body in enumerate(bodies))
    npstream.write(path, samples, columns={"image": "png", "n": "int"}, **options)
    return npstream.open(path)


@pytest.fixture
def ds(tmp_path):
    return write(tmp_path / "ds", shard_size=1 << 12)


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_have_the_images_of_their_samples(ds, shuffle):
    plain = [*ds.iter(0, 1, batch_size=7, shuffle=shuffle)]
    decoded = [*ds.iter(0, 1, batch_size=7, shuffle=shuffle, decode=True)]
    assert len(plain) == len(decoded)
    for a, b in zip(plain, decoded, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.repeated, b.repeated)
        np.testing.assert_array_equal(a["n"], b["n"])
        np.testing.assert_array_equal(b["image"], PICTURES[b.ids])
    assert not started_threads("npstream-images")


def test_samples_have_their_images(ds):
    for sample in ds.iter(0, 1, shuffle=True, decode=True):
        assert [*sample] == ["image", "n"]
        np.testing.assert_array_equal(sample["image"], PICTURES[sample["n"]])
        # The image keeps no other images in memory: it has 360 bytes.
        assert sample["image"].base is None or sample["image"].base.nbytes < 1000
    image_samples = [*ds[["image"]].iter(0, 1, batch_size=4, batched=False, decode="image")]
    np.testing.assert_array_equal([sample["image"] for sample in image_samples], PICTURES)


def test_states_are_those_of_a_loop_without_decoding(ds):
    plain = ds.iter(0, 1, batch_size=7, shuffle=True)
    decoded = ds.iter(0, 1, batch_size=7, shuffle=True, decode=True)
    for _ in zip(plain, decoded, strict=True):
        assert plain.state_dict() == decoded.state_dict()
    iterator = iter(decoded)
    next(iterator)
    state = decoded.state_dict()
    expected = [batch["n"].tolist() for batch in iterator]
    resumed = ds.iter(0, 1, batch_size=7, shuffle=True, decode=True)
    resumed.load_state_dict(state)
    assert [batch["n"].tolist() for batch in resumed] == expected


def random_crops(ds, world, batch_size, **options):
    """Return the random crop of each sample of epoch 1, read by `world` ranks."""
    crops = {}
    for rank in range(world):
        loop = ds.iter(
            rank, world, batch_size=batch_size, shuffle=True, seed=3, epoch=1,
            decode={"image": {"crop": "random", "crop_size": 5}}, **options,
        )  # fmt: skip
        for batch in loop:
            images = batch["image"] if loop.yields_batches else batch["image"][None]
            for n, crop in zip(np.atleast_1d(batch["n"]).tolist(), images, strict=True):
                assert crops.setdefault(n, crop.tobytes()) == crop.tobytes()
    return crops


def test_random_crops_are_the_same_on_any_ranks(ds):
    expected = random_crops(ds, 1, 60)
    assert len(expected) == COUNT
    assert random_crops(ds, 2, 10) == expected
    assert random_crops(ds, 3, 4) == expected
    assert random_crops(ds, 1, 7) == expected
    assert random_crops(ds, 2, 5, batched=False) == expected


def test_random_crops_differ_between_epochs(ds):
    loop = ds.iter(0, 1, batch_size=60, decode={"image": {"crop": "random", "crop_size": 5}})
    first, second = (next(iter(loop))["image"] for _ in range(2))
    assert not np.array_equal(first, second)


def test_a_resumed_loop_makes_the_same_crops(ds):
    decode = {"image": {"crop": "random", "crop_size": 5}}
    whole = [b["image"] for b in ds.iter(0, 1, batch_size=12, shuffle=True, decode=decode)]
    loop = ds.iter(0, 1, batch_size=12, shuffle=True, decode=decode)
    next(iter(loop))
    resumed = ds.iter(0, 1, batch_size=6, shuffle=True, decode=decode)
    resumed.load_state_dict(loop.state_dict())
    remaining = np.concatenate([batch["image"] for batch in resumed])
    np.testing.assert_array_equal(remaining, np.concatenate(whole[1:]))


def test_two_columns_of_a_sample_are_cropped_at_the_same_place(tmp_path):
    bodies = [encode(Image.fromarray(array)) for array in PICTURES]
    samples = ({"image": body, "mask": body} for body in bodies)
    npstream.write(tmp_path / "ds", samples, columns={"image": "png", "mask": "bytes"})
    options = {"crop": "random", "crop_size": 6}
    batch = npstream.open(tmp_path / "ds").load(decode={"image": options, "mask": options})
    np.testing.assert_array_equal(batch["image"], batch["mask"])


def test_a_damaged_image_fails_its_batch_and_the_loop_goes_on(tmp_path):
    ds = write(tmp_path / "ds", damaged=(13, 14, 40))
    iterator, seen, errors = iter(ds.iter(0, 1, batch_size=6, decode=True)), [], []
    while True:
        try:
            seen.append(next(iterator)["n"].tolist())
        except StopIteration:
            break
        except FormatError as error:
            errors.append(str(error))
    assert seen == [[*range(k, k + 6)] for k in range(0, COUNT, 6) if k not in (12, 36)]
    assert len(errors) == 2
    assert "sample 13" in errors[0]
    assert "sample 40" in errors[1]
    assert "shard.00000.mds" in errors[0]
    assert "column 'image'" in errors[0]
    assert not started_threads("npstream-images")


def test_a_damaged_image_fails_its_sample_and_the_loop_goes_on(tmp_path):
    ds = write(tmp_path / "ds", damaged=(13, 14, 40))
    events, iterator = [], iter(ds.iter(0, 1, decode=True))
    while True:
        try:
            events.append(next(iterator)["n"])
        except StopIteration:
            break
        except FormatError as error:
            events.append(next(k for k in (13, 14, 40) if f"sample {k}" in str(error)) + 100)
    assert events == [n + 100 if n in (13, 14, 40) else n for n in range(COUNT)]


@pytest.mark.parametrize("end", ["break", "close", "free", "exception"])
def test_threads_end_with_the_loop(ds, end):
    def fail_late(image):
        if image[0, 0, 0] > 30 and end == "exception":
            raise LookupError
        return image

    loop = ds.iter(0, 1, batch_size=4, decode={"image": {"transform": fail_late}})
    iterator = iter(loop)
    next(iterator)
    assert started_threads("npstream-images")
    if end == "close":
        iterator.close()
    elif end == "exception":
        with pytest.raises(LookupError):
            list(iterator)
    elif end == "break":
        for _ in iterator:
            break
        del iterator
    else:
        del iterator
        gc.collect()
    assert not started_threads("npstream-images")


def test_at_most_one_batch_is_decoded_ahead(ds):
    decoded = []
    options = {"transform": lambda image: decoded.append(int(image[0, 0, 0])) or image}
    iterator = iter(ds.iter(0, 1, batch_size=4, decode={"image": options}))
    for k in range(5):
        next(iterator)
        assert len(decoded) <= 4 * (k + 2)
    iterator.close()
    assert len(decoded) <= 4 * 6


def test_batches_are_freed(ds):
    iterator, references = iter(ds.iter(0, 1, batch_size=4, decode=True)), []
    for _ in range(6):
        batch = next(iterator)
        references.append(weakref.ref(batch))
        del batch
        gc.collect()
    # The iterator itself refers to the last batch.
    assert [reference() for reference in references[:-1]] == [None] * 5


def test_an_inherited_iterator_goes_on_in_a_forked_process(ds):
    iterator = iter(ds.iter(0, 1, batch_size=6, decode=True))
    next(iterator)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            remaining = [batch["image"][:, 0, 0, 0].tolist() for batch in iterator]
            os.write(writer, repr(remaining).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    assert text == repr([[*range(k, k + 6)] for k in range(6, COUNT, 6)])
    assert [batch["n"][0] for batch in iterator] == [*range(6, COUNT, 6)]


def test_mixtures_decode_before_the_transforms_of_their_sources(ds):
    def mark(sample):
        assert isinstance(sample["image"], np.ndarray)
        return {**sample, "marked": True}

    mixed = npstream.mix({"a": ds[:30].with_transform(mark), "b": ds[30:]})
    seen = {}
    for sample in mixed.iter(0, 1, shuffle=True, decode=True):
        np.testing.assert_array_equal(sample["image"], PICTURES[sample["n"]])
        seen[sample["n"]] = "marked" in sample
    assert seen == {n: n < 30 for n in range(COUNT)}
    plain = npstream.mix({"a": ds[:30], "b": ds[30:]})
    for batch in plain.iter(0, 1, batch_size=8, shuffle=True, decode={"image": {"resize": (6, 5)}}):
        assert batch["image"].shape == (8, 6, 5, 3)


def test_damage_in_a_mixture_is_located_in_its_source(ds, tmp_path):
    other = write(tmp_path / "other", damaged=(5,))
    mixed = npstream.mix({"good": ds, "bad": other})
    with pytest.raises(FormatError, match=r"other/shard.00000.mds.*sample 5"):
        [*mixed.iter(0, 1, batch_size=8, decode=True)]


def test_added_columns_are_decoded(tmp_path):
    path = tmp_path / "ds"
    npstream.write(path, {"n": np.arange(COUNT)})
    bodies = [encode(Image.fromarray(array)) for array in PICTURES]
    bodies[50] = bodies[50][:-30]
    npstream.add_columns(path, {"image": bodies})
    ds = npstream.open(path)
    iterator = iter(ds.iter(0, 1, batch_size=10, decode="image"))
    for k in range(5):
        np.testing.assert_array_equal(next(iterator)["image"], PICTURES[10 * k : 10 * k + 10])
    with pytest.raises(FormatError, match="sample 50"):
        next(iterator)
    np.testing.assert_array_equal(ds["image"][:50].decode(), PICTURES[:50])


def test_a_transform_of_batches_gets_decoded_images(ds):
    loop = ds.iter(0, 1, batch_size=6, decode=True, transform=lambda batch: batch["image"].shape)
    assert {*loop} == {(6, 12, 10, 3)}


def test_a_decoded_batch_can_be_written_again(ds, tmp_path):
    batch = ds.load(decode=True)
    npstream.write(tmp_path / "again", batch)
    again = npstream.open(tmp_path / "again")
    np.testing.assert_array_equal(again["image"].load(), PICTURES)


def halve(image):
    return image // 2


def test_settings_are_pickled(ds):
    loop = pickle.loads(
        pickle.dumps(ds.iter(0, 1, batch_size=6, decode={"image": {"transform": halve}}))
    )
    np.testing.assert_array_equal(np.concatenate([b["image"] for b in loop]), PICTURES // 2)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_decode(ds, torch, method):
    from npstream.torch import DataLoader

    options = {"crop": "random", "crop_size": 5, "transform": halve}
    loop = ds.iter(0, 1, batch_size=6, shuffle=True, decode={"image": options})
    expected = [(batch["n"], batch["image"]) for batch in loop]
    again = ds.iter(0, 1, batch_size=6, shuffle=True, decode={"image": options})
    loader = DataLoader(again, num_workers=2, multiprocessing_context=method)
    batches = [(batch["n"], batch["image"]) for batch in loader]
    for (n, image), (other_n, other_image) in zip(expected, batches, strict=True):
        np.testing.assert_array_equal(n, other_n)
        np.testing.assert_array_equal(image, other_image)


@pytest.mark.filterwarnings("ignore:Got pickle error")
def test_a_spawned_worker_needs_importable_functions(ds, torch):
    loop = ds.iter(0, 1, batch_size=6, decode={"image": {"transform": lambda image: image}})
    loader = torch.utils.data.DataLoader(
        loop, batch_size=None, num_workers=1, multiprocessing_context="spawn"
    )
    with pytest.raises(TypeError, match="transform= of decode"):
        iter(loader)


def test_batches_become_tensors(ds, torch):
    batch = ds.load(decode={"image": {"resize": 6}}).to_torch()
    assert batch["image"].dtype == torch.uint8
    assert batch["image"].shape == (COUNT, 7, 6, 3)  # the shorter side of 12 x 10 becomes 6
    assert ds.load(decode=True).to("cpu")["image"].shape == (COUNT, 12, 10, 3)
    cuts = iter(range(1, 4))
    uneven = {"transform": lambda image: image[: next(cuts)]}
    batch = ds[:3].load(decode={"image": uneven}).to_torch()
    assert sorted(len(image) for image in batch["image"]) == [1, 2, 3]
    assert all(isinstance(image, torch.Tensor) for image in batch["image"])
    mapped = torch.utils._pytree.tree_map(lambda leaf: leaf, batch)
    assert mapped.ids.tolist() == [0, 1, 2]


def test_processes_share_the_processors(monkeypatch):
    from npstream.iteration import ranks
    from npstream.reading.images import threads

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(16), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert threads.thread_count() == 16
    assert ranks.decoding_threads(4) == 4  # 16 processors for 4 ranks
    monkeypatch.setattr(ranks, "this_worker", lambda: (0, 3))
    assert ranks.decoding_threads(4) == 1  # 16 for 4 ranks with 3 workers each
    assert ranks.decoding_threads(None) == 5  # 16 for 3 workers
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert ranks.decoding_threads(None) == 2  # 16 for 2 ranks with 3 workers each
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(500), raising=False)
    assert threads.thread_count() == threads.MAX_DECODE_THREADS


def test_an_interruption_repeats_the_batch(ds, monkeypatch):
    wait, calls = image_columns._wait, []

    def interrupt_third_call(*arguments):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return wait(*arguments)

    monkeypatch.setattr(image_columns, "_wait", interrupt_third_call)
    iterator = iter(ds.iter(0, 1, batch_size=6, decode=True))
    seen = [next(iterator)["n"][0] for _ in range(2)]
    with pytest.raises(KeyboardInterrupt):
        next(iterator)
    assert not started_threads("npstream-images")
    seen += [batch["n"][0] for batch in iterator]
    assert seen == [*range(0, COUNT, 6)]


def test_the_iterator_of_an_older_loop_raises(ds):
    loop = ds.iter(0, 1, batch_size=6, decode=True)
    older = iter(loop)
    next(older)
    newer = iter(loop)
    next(newer)
    with pytest.raises(RuntimeError, match="this iterator is outdated"):
        next(older)

"""Epochs of mixtures are equal for any ranks, and resume at any position and in other mixtures."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json

import numpy as np
import pytest
from dataset_files import write_shards

import npstream
from npstream.iteration.counter import EpochCursor
from npstream.iteration.ranks import Ranks
from npstream.mixture.epochs import MixtureEpochs, mixture_settings
from npstream.mixture.run import continue_run
from npstream.mixture.shares import MixtureSpec, make_schedule
from npstream.orders.order import Shuffle

torch = pytest.importorskip("torch", reason="loaders need torch")

BATCHINGS = ["random", "stratified", "per_stream", "device_per_stream"]
LANES = Shuffle("1KiB", 8)
START = EpochCursor(0)
ALONE = Ranks(0, 1, 1)


def chunk_bounds(n):
    """Return the bounds of chunks of 4 rows."""
    return np.append(np.arange(0, n, 4), n)


def sources_of(rows):
    """Return the sources of rows of `mixture()`: 200 rows of "a", 120 of "b" and 64 of "c"."""
    return np.searchsorted([200, 320], rows, side="right")


def fingerprint_of(name, n, version):
    return f"{name}{n}" if version == 2 else f"{name}{n} in version {version}"


def mixture(sizes=None, weights=None, block=24, **settings):
    sizes = {"a": 200, "b": 120, "c": 64} if sizes is None else sizes
    return MixtureSpec(
        names=tuple(sizes),
        sizes=tuple(sizes.values()),
        nbytes=tuple(8 * n for n in sizes.values()),
        chunks=tuple(functools.partial(chunk_bounds, n) for n in sizes.values()),
        fingerprints=tuple(functools.partial(fingerprint_of, name, n) for name, n in sizes.items()),
        schedule=make_schedule(list(sizes), list(sizes.values()), weights, **settings),
        block=block,
    )


def settings_of(spec, batching, batch_size=None, global_batch_size=None, **others):
    return mixture_settings(spec.names, batching, batch_size, global_batch_size, **others)


def make_epochs(spec=None, batching="random", **settings):
    spec = spec or mixture()
    return MixtureEpochs(spec, settings_of(spec, batching, **{"shuffle": LANES, **settings}))


def part(epochs, rank=0, world=1, size=8, last="repeat", cursor=START, per_node=None):
    return epochs.part(cursor, Ranks(rank, world, per_node or world), size, last)


def read(share):
    """Return the rows of all batches of a rank."""
    return [share.lookup(range(number, number + 1))[0].tolist() for number in range(share.batches)]


def flatten(batches):
    return list(itertools.chain.from_iterable(batches))


def read_ranks(epochs, world, size, **settings):
    """Return the rows of all ranks, with one global batch in each row."""
    by_rank = [read(part(epochs, rank, world, size, **settings)) for rank in range(world)]
    return [flatten(step) for step in zip(*by_rank, strict=True)]


@pytest.mark.parametrize("shuffle", [False, True, LANES, Shuffle(None)])
@pytest.mark.parametrize("batching", BATCHINGS[:3])
def test_global_batches_do_not_depend_on_ranks(batching, shuffle):
    epochs = {
        world: make_epochs(batching=batching, global_batch_size=24, shuffle=shuffle)
        for world in (1, 2, 4, 8)
    }
    expected = [sorted(batch) for batch in read_ranks(epochs[1], 1, 24)]
    assert len(expected) == 384 // 24
    for world, per_node in ((2, 1), (4, 2), (8, 8), (8, 1)):
        seen = read_ranks(epochs[world], world, 24 // world, per_node=per_node)
        assert [sorted(batch) for batch in seen] == expected


def test_batches_of_devices_do_not_depend_on_ranks():
    epochs = make_epochs(batching="device_per_stream", batch_size=6)
    expected = read(part(epochs, size=6))
    assert len(expected) == 384 // 6
    for world, per_node in ((2, 1), (4, 2), (8, 8), (8, 1)):
        seen = [None] * len(expected)
        for rank in range(world):
            # Batch b of a step goes to rank b // nodes of node b % nodes.
            node, node_rank = divmod(rank, per_node)
            share = part(epochs, rank, world, 6, per_node=per_node)
            seen[node_rank * (world // per_node) + node :: world] = read(share)
        assert seen == expected


@pytest.mark.parametrize("last", ["repeat", "drop", "short"])
def test_last_batches_of_device_per_stream(last):
    epochs = make_epochs(batching="device_per_stream", batch_size=7)  # an epoch has 54 batches
    shares = [part(epochs, rank, 4, 7, last) for rank in range(4)]
    counts = {"repeat": [14] * 4, "drop": [13] * 4, "short": [14, 14, 13, 13]}[last]
    assert [share.batches for share in shares] == counts
    assert [share.samples for share in shares] == [7 * count for count in counts]
    repeated = [share.lookup(range(share.batches))[1].sum() for share in shares]
    assert repeated == ([0, 0, 7, 7] if last == "repeat" else [0] * 4)
    if last == "repeat":
        assert read(shares[2])[-1] == read(shares[0])[0]


@pytest.mark.parametrize("batching", BATCHINGS)
def test_epochs_resume_from_any_batch(batching):
    size_name = "batch_size" if batching == "device_per_stream" else "global_batch_size"
    settings = {"batching": batching, size_name: 24}
    epochs = make_epochs(**settings)
    whole = read(part(epochs, size=24))
    for number in range(len(whole)):
        state = epochs.state(EpochCursor(0, 24 * number), ALONE)
        again = make_epochs(**settings)
        cursor = again.load_cursor(json.loads(json.dumps(state)), ALONE)
        assert cursor == EpochCursor(0, 24 * number)
        assert read(part(again, size=24, cursor=cursor)) == whole[number:]


def test_epochs_resume_from_any_sample_with_any_ranks():
    epochs = make_epochs()
    whole = flatten(read(part(epochs)))
    for position in (1, 7, 24, 100, 383):
        remaining = part(epochs, cursor=EpochCursor(0, position), last="short")
        assert flatten(read(remaining)) == whole[position:]
        seen = [
            row
            for rank in range(3)
            for row in flatten(read(part(epochs, rank, 3, 5, "short", EpochCursor(0, position))))
        ]
        assert sorted(seen) == sorted(whole[position:])


def test_ranges_are_skipped():
    for batching in BATCHINGS:
        epochs = make_epochs(batching=batching, batch_size=12)
        whole = read(part(epochs, size=12))
        remaining = part(epochs, size=12, cursor=EpochCursor(0, 0, ((24, 60),)))
        assert read(remaining) == whole[:2] + whole[5:]


@pytest.mark.parametrize("batching", BATCHINGS[1:])
def test_batches_are_of_one_source_or_have_exact_shares(batching):
    spec = mixture(weights={"a": 4, "b": 3, "c": 1})
    world = 1 if batching == "device_per_stream" else 2
    epochs = make_epochs(spec, batching, batch_size=8)
    batches = read_ranks(epochs, world, 8)
    sources = sources_of(np.array(batches))
    if batching == "stratified":
        assert (np.sort(sources) == [0] * 8 + [1] * 6 + [2] * 2).all()
    else:
        assert (sources == sources[:, :1]).all()
        first_block = sources[:24, 0]
        assert np.bincount(first_block).tolist() == [12, 9, 3]


@pytest.mark.parametrize("batching", BATCHINGS[2:])
def test_batch_sizes_can_differ_by_source(batching):
    sizes = {"a": 2, "b": 4, "c": 6}
    spec = mixture(weights={"a": 1, "b": 1, "c": 1}, block=11)
    global_sizes = {name: 2 * size for name, size in sizes.items()}
    settings = settings_of(spec, batching, shuffle=True, batch_size=sizes)
    assert (settings.batch_size, settings.global_batch_size) == (6, None)
    epochs = MixtureEpochs(spec, settings)
    shares = [part(epochs, rank, 2, 6) for rank in range(2)]
    batches = [batch for share in shares for batch in read(share)]
    sources = [set(sources_of(batch).tolist()) for batch in batches]
    assert all(len(batch_sources) == 1 for batch_sources in sources)
    lengths = [list(sizes.values())[batch_sources.pop()] for batch_sources in sources]
    assert [len(batch) for batch in batches] == lengths
    if batching == "per_stream":
        # Equal weights are equal numbers of samples: a block has 6, 3 and 2 batches of 2, 4 and 6.
        block_sizes = [len(batch) for batch in read(shares[0])[:11]]
        assert np.bincount(block_sizes)[[2, 4, 6]].tolist() == [6, 3, 2]
        whole = make_epochs(spec, batching, shuffle=True, global_batch_size=global_sizes)
        assert read(part(whole, 0, 2, 6)) == read(shares[0])
    cursor = EpochCursor(0, 12 * 12)  # 12 steps: one has 2 * 6 positions, even for smaller batches
    remaining = part(epochs, 1, 2, 6, cursor=cursor)
    assert read(remaining) == read(shares[1])[12:]


@pytest.mark.parametrize("per_node", [1, 8])
@pytest.mark.parametrize("batching", BATCHINGS)
def test_nodes_read_their_own_lanes(batching, per_node):
    """Over two epochs: each chunk is read by one node, unless a lane's end cuts it."""
    spec = mixture({"a": 1600, "b": 800}, {"a": 2, "b": 1}, block=48)
    nodes, world = 4, 4 * per_node
    epochs = make_epochs(spec, batching, batch_size=4, shuffle=Shuffle("2KiB", 16))
    readers = {}
    for rank, epoch in itertools.product(range(world), range(2)):
        share = part(epochs, rank, world, 4, "drop", EpochCursor(epoch), per_node)
        for row in flatten(read(share)):
            readers.setdefault(row // 4, set()).add(rank // per_node)
    shared = sum(len(node_set) > 1 for node_set in readers.values())
    assert len(readers) == (1600 + 800) // 4
    assert shared <= 2 * 16  # the ends of 16 lanes of 2 sources
    assert epochs.nodes_per_chunk(nodes) == 1
    assert epochs.nodes_per_chunk(3) == 3


def test_weights_follow_a_schedule():
    spec = mixture(weights=[(0, {"a": 1, "b": 1, "c": 2}), (91, {"a": 6, "b": 1, "c": 1})])
    epochs = make_epochs(spec, epoch_size=400)
    order = epochs.order(0)
    rows = order[:]
    sources = sources_of(rows)
    # Blocks have 25 units, because 24 is not coprime to 8 lanes. Weights change at the next row of
    # lanes, which is 96.
    assert np.bincount(sources[: 3 * 25]).tolist() == [3 * 6, 3 * 6, 3 * 13]
    assert np.bincount(sources[96 : 96 + 12 * 25]).tolist() == [12 * 19, 12 * 3, 12 * 3]
    for first, size in ((0, 200), (200, 120), (320, 64)):
        source_rows = rows[(rows >= first) & (rows < first + size)]
        counts = np.bincount(source_rows - first, minlength=size)
        assert counts.max() - counts.min() <= 1


def test_epochs_are_consecutive_in_the_stream():
    epochs = make_epochs(epoch_size=100)
    stream = epochs.order(0).stream
    for epoch in range(4):
        seen = flatten(read(part(epochs, size=10, cursor=EpochCursor(epoch))))
        assert seen == stream.at(np.arange(100 * epoch, 100 * epoch + 100)).tolist()
    sizes = {"a": 201, "b": 120, "c": 64}
    assert len(make_epochs(mixture(sizes)).order(0)) == 384  # rounded down to rows of lanes
    assert len(make_epochs(mixture(sizes), shuffle=False).order(0)) == 385
    assert len(make_epochs(mixture(sizes), "stratified", batch_size=100).order(0)) == 300


# States


def state_at(epochs, position, epoch=0):
    return json.loads(json.dumps(epochs.state(EpochCursor(epoch, position), ALONE)))


def continue_epochs(spec, state):
    """Return the rows after a state, in its epoch and in the next one."""
    epochs = make_epochs(spec, shuffle=True)
    cursor = epochs.load_cursor(state, ALONE)
    rows = flatten(read(part(epochs, cursor=cursor, last="short")))
    after = cursor._replace(epoch=cursor.epoch + 1).epoch_start
    return rows, flatten(read(part(epochs, cursor=after, last="short")))


def test_other_weights_continue_the_passes_of_sources():
    before, after = (
        mixture(weights={"a": 1, "b": 1, "c": 1}),
        mixture(weights={"a": 6, "b": 1, "c": 1}),
    )
    drawn = flatten(read(part(make_epochs(before, shuffle=True))))[:101]
    state = state_at(make_epochs(before, shuffle=True), 101)
    with pytest.raises(ValueError, match=r"other weights, .*: load mix.continuing.state. of this"):
        make_epochs(after, shuffle=True).load_cursor(state, ALONE)
    changed = json.loads(json.dumps(continue_run(after, state)))
    assert (changed["epoch"], changed["position"]) == (0, 101)
    remaining, following = continue_epochs(after, changed)
    sources = sources_of(remaining[: 10 * 24])  # 10 blocks
    assert np.bincount(sources).tolist() == [10 * 18, 10 * 3, 10 * 3]
    everything = np.array(drawn + remaining + following)
    for first, size in ((0, 200), (200, 120), (320, 64)):
        source_rows = everything[(everything >= first) & (everything < first + size)] - first
        for start in range(0, len(source_rows), size):  # each pass reads the whole source
            one_pass = source_rows[start : start + size]
            assert len(np.unique(one_pass)) == len(one_pass)
    with pytest.raises(ValueError, match=r"mix.continuing"):
        make_epochs(before, shuffle=True).load_cursor(changed, ALONE)


def test_sources_can_be_added_and_removed():
    before, after = mixture(), mixture({"d": 96, "b": 120, "a": 200}, {"a": 1, "b": 1, "d": 1})
    state = state_at(make_epochs(before, shuffle=True), 104)
    with pytest.raises(
        ValueError, match=r"of sources 'a', 'b', 'c'; this mixture has 'd', 'b', 'a'"
    ):
        make_epochs(after, shuffle=True).load_cursor(state, ALONE)
    changed = continue_run(after, state)
    remaining, following = continue_epochs(after, changed)
    assert (len(remaining), len(following)) == (416 - 104, 416)
    drawn = np.array(flatten(read(part(make_epochs(before, shuffle=True))))[:104])
    drawn_a = drawn[drawn < 200]
    remaining_a = [row - 216 for row in remaining if row >= 216]  # "d" and "b" have 216 rows
    assert drawn_a.size
    assert remaining_a
    assert len({*drawn_a.tolist(), *remaining_a}) == len(drawn_a) + len(remaining_a)
    new = [row for row in remaining if row < 96]
    assert len(np.unique(new[:96])) == 96
    # And back: the run remembers a removed source.
    epochs = make_epochs(after, shuffle=True)
    cursor = epochs.load_cursor(changed, ALONE)._replace(position=208)
    again = continue_run(before, epochs.state(cursor, ALONE))
    assert [source["name"] for source in again["mixture"]["sources"]] == ["a", "b", "c", "d"]
    rows, _ = continue_epochs(before, again)
    old = drawn[drawn >= 320].tolist()
    both = old + [row for row in rows if row >= 320]
    assert len(np.unique(both)) == len(both) > len(old)


def test_a_run_continues_in_the_next_epoch_if_the_new_mixture_is_too_short():
    small = mixture({"d": 16, "e": 16})
    changed = continue_run(small, state_at(make_epochs(shuffle=True), 100, 3))
    assert (changed["epoch"], changed["position"]) == (4, 0)
    remaining, following = continue_epochs(small, changed)
    assert len(remaining) == len(following) == 32
    epochs = make_epochs(small, shuffle=True)
    cursor = epochs.load_cursor(changed, ALONE)
    with pytest.raises(ValueError, match="epoch 3: the mixture changed in epoch 4"):
        part(epochs, cursor=cursor._replace(epoch=3))


def test_continuing_from_the_first_position_with_the_same_mixture_changes_nothing():
    spec = mixture()
    changed = continue_run(spec, state_at(make_epochs(spec, shuffle=True), 0))
    assert continue_epochs(spec, changed)[0] == flatten(read(part(make_epochs(spec, shuffle=True))))


@pytest.mark.parametrize("batching", BATCHINGS[1:])
def test_batched_runs_resume_only_between_batches(batching):
    settings = {"batching": batching, "batch_size": 8}
    before, after = mixture(), mixture({"a": 200, "d": 100}, {"a": 1, "d": 1})
    state = state_at(make_epochs(before, **settings), 88)
    epochs = make_epochs(after, **settings)
    cursor = epochs.load_cursor(continue_run(after, state), ALONE)
    batches = np.array(read(part(epochs, cursor=cursor)))
    sources = (batches >= 200).astype(int)
    if batching == "stratified":
        assert (sources.sum(1) == 4).all()
    else:
        assert (sources == sources[:, :1]).all()
        assert 11 <= sources[:24, 0].sum() <= 13  # half of 24 batches, within one
    with pytest.raises(ValueError, match=r"position 90 is within a batch of 8"):
        continue_run(after, {**state, "position": 90})
    with pytest.raises(ValueError, match=r"is within a batch: with batching="):
        part(epochs, cursor=cursor._replace(position=90))


def test_new_sources_have_their_own_batch_size():
    sizes = {"a": 2, "b": 4, "c": 6}
    settings = {"batching": "device_per_stream", "batch_size": sizes}
    state = state_at(make_epochs(**settings), 60)
    after = mixture({"b": 120, "c": 64, "d": 90})
    changed = continue_run(after, state)
    assert changed["mixture"]["sizes"] == [2, 4, 6, None]
    epochs = make_epochs(after, "device_per_stream", batch_size={"b": 4, "c": 6, "d": 3})
    cursor = epochs.load_cursor(changed, ALONE)
    lengths = {len(batch) for batch in read(part(epochs, cursor=cursor))}
    assert lengths == {3, 4, 6}
    epochs = make_epochs(after, "device_per_stream", batch_size={"b": 5, "c": 6, "d": 3})
    with pytest.raises(
        ValueError, match=r"batches of 4 samples of source 'b'; this iteration has 5"
    ):
        epochs.load_cursor(changed, ALONE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batching": "per_stream"}, "batching='stratified'; this iteration has .*per_stream"),
        ({"batch_size": 12}, "global_batch_size=24; this iteration has 12: with"),
        ({"seed": 1}, "seed=0; this iteration has seed=1"),
        ({"shuffle": True}, "the state is of shuffle=.*; this iteration has shuffle="),
        ({"epoch_size": 100}, "the state is of epoch_size=None"),
        ({"spec": mixture({"a": 200, "b": 120, "c": 63})}, "'c' has 63 samples, and had 64"),
        ({"spec": mixture(block=48)}, None),
    ],
)
def test_states_of_other_settings_raise(settings, message):
    arguments = {"batching": "stratified", "batch_size": 24, **settings}
    state = state_at(make_epochs(batching="stratified", batch_size=24), 48)
    epochs = make_epochs(**arguments)
    if message is None:  # block=48 has no effect: a stratified block is a batch
        epochs.load_cursor(state, ALONE)
        return
    with pytest.raises(ValueError, match=message):
        epochs.load_cursor(state, ALONE)


def test_invalid_mixture_states_raise():
    epochs = make_epochs()
    with pytest.raises(ValueError, match="mixture missing"):
        epochs.load_cursor({}, ALONE)
    with pytest.raises(ValueError, match=r"over one dataset, and this is a mixture"):
        epochs.load_cursor({"fingerprint": "x"}, ALONE)
    state = state_at(epochs, 8)
    old = {**state, "mixture": {**state["mixture"], "version": [0, 1, 1]}}
    with pytest.raises(ValueError, match=r"version .0, 1, 1.; this release of npstream has"):
        epochs.load_cursor(old, ALONE)
    with pytest.raises(ValueError, match=r"damaged: position reaches sample 1,000,000,000"):
        epochs.load_cursor({**state, "position": 10**9}, ALONE)
    with pytest.raises(ValueError, match="one of several workers"):
        continue_run(mixture(), {**state, "workers": 2, "yielded": 3})
    other = mixture()
    object.__setattr__(other, "fingerprints", (lambda version: "?",) * 3)
    with pytest.raises(ValueError, match="'a' holds other samples, or in another order"):
        continue_run(other, state)


def test_states_of_version_1_can_be_resumed():
    """Fingerprints are updated to version 2, except that of a removed source."""
    spec = mixture()

    def as_version_1(state):
        sources = state["mixture"]["sources"]
        for source, name, size in zip(sources, spec.names, spec.sizes, strict=True):
            source["fingerprint"] = fingerprint_of(name, size, 1)
        return {**state, "version": 1}

    epochs = make_epochs(spec)
    old = as_version_1(state_at(epochs, 8))
    assert epochs.load_cursor(old, ALONE) == EpochCursor(0, 8)
    small = mixture({"a": 200, "b": 120})
    changed = continue_run(small, old)
    fingerprints = [source["fingerprint"] for source in changed["mixture"]["sources"]]
    assert (changed["version"], fingerprints) == (2, ["a200", "b120", "1:c64 in version 1"])
    later = make_epochs(small)
    again = later.state(later.load_cursor(changed, ALONE), ALONE)
    assert [source["fingerprint"] for source in again["mixture"]["sources"]] == fingerprints
    restored = continue_run(spec, again)
    assert [source["fingerprint"] for source in restored["mixture"]["sources"]] == [
        "a200", "b120", "c64"
    ]  # fmt: skip
    wrong = {**old, "version": 2}
    with pytest.raises(ValueError, match="'a' holds other samples, or in another order"):
        epochs.load_cursor(wrong, ALONE)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"batching": "mixed"}, ValueError, "batching='mixed': expected 'random', 'stratified'"),
        ({"batching": "stratified"}, ValueError, "give batch_size or global_batch_size"),
        ({"batch_size": {"a": 1, "b": 1, "c": 1}}, ValueError, "if each batch is of one source"),
        ({"batching": "per_stream", "batch_size": {"a": 1}}, ValueError, "a size for each of 'a',"),
        (
            {"batching": "per_stream", "batch_size": {"a": 1, "b": 0, "c": 1}},
            ValueError,
            "batch_size=0: expected at least 1",
        ),
        (
            {"batching": "device_per_stream", "batch_size": 4, "batched": False},
            ValueError,
            "batched=False: ",
        ),
        ({"shuffle": "py1e"}, TypeError, "expected False, True or an npstream.Shuffle"),
    ],
)
def test_invalid_mixture_settings_raise(settings, error, message):
    with pytest.raises(error, match=message):
        make_epochs(**settings)


def test_impossible_batches_raise():
    epochs = make_epochs(
        mixture(weights={"a": 100, "b": 100, "c": 1}, block=None), "stratified", batch_size=50
    )
    with pytest.raises(
        ValueError, match="50 samples holds no sample of it: give global_batch_size=201"
    ):
        part(epochs, size=50)
    epochs = make_epochs(mixture(weights={"a": 1, "b": 1, "c": 1}), "stratified", batch_size=300)
    with pytest.raises(
        ValueError, match="'c' has 64 samples, and a global batch of 300 samples would hold 100"
    ):
        part(epochs, size=300)
    epochs = make_epochs(batching="per_stream", global_batch_size={"a": 8, "b": 6, "c": 8})
    with pytest.raises(ValueError, match="global_batch_size=6: expected a multiple of 4"):
        part(epochs, 0, 4, 2)
    epochs = make_epochs(batching="per_stream", batch_size=8, epoch_size=7)
    with pytest.raises(ValueError, match=r"epoch_size=7: .* of 8 samples each"):
        part(epochs)
    epochs = make_epochs(batching="per_stream", batch_size={"a": 8, "b": 6, "c": 8})
    with pytest.raises(ValueError, match="an order of samples needs"):
        epochs.order(0)


def test_epochs_equal_recorded_digests():
    digest = hashlib.blake2b(digest_size=8)
    for batching in BATCHINGS:
        epochs = make_epochs(batching=batching, batch_size=24)
        digest.update(json.dumps(read(part(epochs, size=24, cursor=EpochCursor(2)))).encode())
        state = {**state_at(epochs, 48), "version": 1}  # the version of the recorded digest
        del state["settings_hash"]  # states did not have it when the digests were recorded
        digest.update(json.dumps(state, sort_keys=True).encode())
    assert digest.hexdigest() == "3d0987da201127a3"


# Workers


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory):
    """Return a mixture, and another mixture to continue with."""
    path = tmp_path_factory.mktemp("mixtures")
    views = {}
    for name, n in {"a": 90, "b": 60, "c": 40}.items():
        views[name] = write_shards(path / name, {"label": np.arange(n)}, [n // 2, n - n // 2])
    one = npstream.mix({"a": views["a"], "b": views["b"]}, {"a": 1, "b": 2}, block=12)
    other = npstream.mix({"c": views["c"], "b": views["b"]}, {"b": 1, "c": 3}, block=12)
    return one, other


def ids(loader):
    return [np.asarray(batch.ids).tolist() for batch in loader]


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_continue_with_another_mixture(mixtures, start, persistent):
    one, other = mixtures
    settings = {"batch_size": 8, "shuffle": True}
    batches = one.iter(0, 1, **settings)
    for _ in zip(range(3), batches):  # noqa: B905 - it is left early
        pass
    state = other.continuing(json.loads(json.dumps(batches.state_dict())))
    alone = other.iter(0, 1, **settings)
    fresh = ids(alone)
    alone.load_state_dict(state)
    expected = [ids(alone), ids(alone)]
    loader = npstream.torch.DataLoader(
        other.iter(0, 1, **settings),
        num_workers=2,
        multiprocessing_context=start,
        persistent_workers=persistent,
    )
    if persistent:  # workers are already running
        assert ids(loader) == fresh
    loader.load_state_dict(state)
    assert ids(loader) == expected[0]
    if start == "fork" or persistent:  # starting new workers takes long
        assert ids(loader) == expected[1]
        assert loader.state_dict() == alone.state_dict()
    assert len(loader) == len(expected[1])


@pytest.mark.parametrize("version", [None, 3, "2"])
def test_states_of_unknown_versions_are_not_continued(mixtures, version):
    one, other = mixtures
    state = one.iter(0, 1, batch_size=8, shuffle=True).state_dict(24) | {"version": version}
    with pytest.raises(ValueError, match="version"):
        other.continuing(state)


def test_the_trainer_epoch_advances_with_the_epoch(mixtures):
    """A state at the end of an epoch continues in the next epoch, and in the trainer's next one."""
    one, other = mixtures
    state = one.iter(0, 1, batch_size=8, shuffle=True).state_dict(16) | {"trainer_epoch": 5}
    ended = state | {"position": len(one)}
    continued = other.continuing(ended)
    assert (continued["epoch"], continued["position"]) == (state["epoch"] + 1, 0)
    assert continued["trainer_epoch"] == 6
    assert other.continuing(state)["trainer_epoch"] == 5
    assert other.continuing(ended | {"trainer_epoch": None})["trainer_epoch"] is None


def test_torchs_own_loader_resumes(mixtures):
    one, other = mixtures
    settings = {"batch_size": 8, "shuffle": True}
    state = other.continuing(one.iter(0, 1, **settings).state_dict(24))
    alone, samples = other.iter(0, 1, **settings), other.iter(0, 1, **settings)
    loader = torch.utils.data.DataLoader(
        samples, batch_size=None, num_workers=2, persistent_workers=True
    )
    assert ids(loader) == ids(alone)
    for iteration in (samples, alone):
        iteration.load_state_dict(state)
    assert [ids(loader), ids(loader)] == [ids(alone), ids(alone)]


@pytest.mark.parametrize("batching", BATCHINGS)
def test_iterations_read_in_the_order_that_order_returns(mixtures, batching):
    one, _ = mixtures
    settings = {"batching": batching, "batch_size": 6}
    seen = flatten(ids(one.iter(0, 1, shuffle=True, seed=3, **settings)))
    assert seen == one.order(3, **settings)[:].tolist()
    assert one.shuffle(3, **settings).take([5])["label"][0] == one.take([seen[5]])["label"][0]
    again = one.iter(0, 1, shuffle=True, seed=3, **settings)
    first = next(iter(again)).ids.tolist()
    state = again.state_dict()
    resumed = one.iter(0, 1, shuffle=True, seed=3, **settings)
    resumed.load_state_dict(json.loads(json.dumps(state)))
    assert first + flatten(ids(resumed)) == seen
    assert isinstance(resumed._epochs, MixtureEpochs)

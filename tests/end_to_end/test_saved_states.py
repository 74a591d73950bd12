"""States that earlier releases saved resume at exactly the same samples."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import saved_states

import npstream
from npstream.orders.permutation import Permutation

FILES = sorted((Path(__file__).parents[1] / "golden" / "states").glob("*.json"))
SAVED = [record for file in FILES for record in json.loads(file.read_text())]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    saved_states.write(root)
    return saved_states.open_sources(root)


def test_the_identity_of_orders_does_not_change(sources):
    """Fingerprints of views hash the identity of an order. A repr may change, an identity not."""
    one = sources["c"].order(3, 2, block=None, lanes=1)
    assert one.identity() == "<Order: 34 rows, seed 3, epoch 2, 1 lanes, blocks of 34>"
    mixed = npstream.mix({"a": sources["a"], "c": sources["c"]})
    known = "<EpochOrder: 245 positions from 0 on, <MixtureOrder: 2 sources, 0338d6b49afdf304>>"
    assert mixed.order(0).identity() == known
    assert Permutation(1234, 5).identity() == "Permutation(1234, 5)"


@pytest.mark.filterwarnings("ignore:each chunk is fetched . times")
@pytest.mark.parametrize("case", saved_states.CASES)
def test_a_saved_state_resumes_at_its_sample(sources, case):
    assert_resumes(sources, case)


def assert_resumes(sources, case):
    records = [record for record in SAVED if record["case"] == case]
    assert records
    for record in records:
        iteration = saved_states.CASES[case](sources)
        iteration.load_state_dict(record["state"])
        resumed = list(islice(saved_states.items(iteration), saved_states.FOLLOWING))
        assert resumed == record["following"]


@pytest.mark.filterwarnings("ignore:each chunk is fetched . times")
@pytest.mark.parametrize(
    "case", ["lanes", "mask", "part by chunk", "stratified", "part of a mixture", "streaming py1e"]
)
def test_a_saved_state_resumes_after_columns_were_added(tmp_path, case):
    saved_states.write(tmp_path)
    for name, size in saved_states.SIZES.items():
        values = {"score": np.arange(size) / 8, "wide": np.ones((size, 1000))}
        npstream.add_columns(tmp_path / name, values, shard_size="10KB")
    sources = saved_states.open_sources(tmp_path)
    assert "wide" in sources["a"].columns
    assert_resumes(sources, case)

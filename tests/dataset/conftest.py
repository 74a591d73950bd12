"""Fixtures: a small dataset of several shards, with a column of each kind."""

from __future__ import annotations

import pytest
from dataset_files import write_shards
from mixed_columns import COLUMNS, SIZES, VALUES

import npstream


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("dataset")
    write_shards(path, VALUES, SIZES, COLUMNS)
    return path


@pytest.fixture
def ds(path):
    return npstream.open(path)

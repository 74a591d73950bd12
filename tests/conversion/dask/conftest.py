"""A cluster of two worker processes."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def client():
    """Return a client of a cluster with two worker processes, which start with one thread each."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", host="127.0.0.1"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client

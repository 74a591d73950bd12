"""Settings and servers that all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest

from servers import KINDS, Place, Servers

# The same examples at every run; `--hypothesis-profile=search` looks for new ones.
hypothesis.settings.register_profile(
    "repeat", deadline=None, derandomize=True, database=None, print_blob=True
)
hypothesis.settings.register_profile("search", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("repeat")


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Real servers by their names, each started when it is first asked for."""
    running = Servers(tmp_path_factory.mktemp("servers"))
    yield running
    running.close()


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, servers: Servers) -> Place:
    """Return a fresh directory on each of the servers in turn."""
    return servers[request.param].fresh()

"""Fixtures of the examples in the documents: stores on the servers of the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from servers import RemoteDirectory, Servers

DIRECTORY = "npstream/guide/cities"


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Return the servers of the tests by name; each starts at its first use."""
    from servers import Servers

    running = Servers(tmp_path_factory.mktemp("servers"))
    yield running
    running.close()


@pytest.fixture
def _environment() -> Iterator[None]:
    """Restore the environment variables that an example sets."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def _set_address(place: RemoteDirectory, *names: str) -> RemoteDirectory:
    """Set variables that name the server, and none that name a secret."""
    os.environ.update({name: place.env[name] for name in names})
    return place


@pytest.fixture
def s3_place(servers: Servers, _environment: None) -> RemoteDirectory:
    """Return a directory of the S3 server, whose address is in the environment."""
    place = servers["s3"].directory_at(DIRECTORY)
    return _set_address(place, "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")


@pytest.fixture
def gcs_place(servers: Servers, _environment: None) -> RemoteDirectory:
    """Return a directory of Google's emulator, whose address is in the environment."""
    return _set_address(servers["gcs"].directory_at(DIRECTORY), "STORAGE_EMULATOR_HOST")


@pytest.fixture
def azure_place(servers: Servers, _environment: None) -> RemoteDirectory:
    """Return a directory of Azure's emulator, whose connection string is in the environment."""
    return _set_address(servers["azure"].directory_at(DIRECTORY), "AZURE_STORAGE_CONNECTION_STRING")


@pytest.fixture
def oci_place(servers: Servers) -> dict[str, Any]:
    """Return the storage options of the OCI server."""
    return servers["oci"].directory_at(DIRECTORY).storage_options


@pytest.fixture
def sftp_place(servers: Servers) -> tuple[str, str]:
    """Return a URL of the SFTP server, and the file of a key."""
    place = servers["sftp"].new_directory()
    return place.url, place.storage_options["key_filename"]


@pytest.fixture
def http_place(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the URL of a dataset on the web server, behind a password."""
    import npstream

    server = servers["http"]
    directory = tmp_path_factory.mktemp("http") / "cities"
    npstream.write(directory, [{"name": "Oslo"}, {"name": "Bergen"}])
    for file in directory.iterdir():
        server.put(f"{DIRECTORY}/{file.name}", file.read_bytes())
    return server.directory_at(DIRECTORY, location="auth").url


@pytest.fixture
def hf_place(servers: Servers, _environment: None) -> RemoteDirectory:
    """Return a directory of the Hub, whose address is in the environment."""
    return _set_address(servers["hf"].directory_at(DIRECTORY), "HF_ENDPOINT")

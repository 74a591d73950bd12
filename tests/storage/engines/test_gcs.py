"""Tests of the translation of gcsfs's options to obstore's. gcsfs reads if it is impossible."""

from __future__ import annotations

import inspect
import os

import pytest

from npstream.storage.engines import gcs
from npstream.storage.engines.gcs import gcs_target
from npstream.storage.engines.options import UnsupportedOptionError

ANONYMOUS = {"token": "anon"}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in os.environ:
        if name.startswith(("GOOGLE_", "STORAGE_EMULATOR")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("options", "variable", "url"),
    [
        ({}, None, "https://storage.googleapis.com"),
        ({}, "default", "https://storage.googleapis.com"),
        ({}, "127.0.0.1:1", "http://127.0.0.1:1"),
        ({}, "https://host/", "https://host"),
        ({"endpoint_url": "http://127.0.0.1:2"}, "127.0.0.1:1", "http://127.0.0.1:2"),
    ],
)
def test_the_endpoint_is_that_of_gcsfs(monkeypatch, options, variable, url):
    if variable is not None:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", variable)
    target = gcs_target("bucket", ANONYMOUS | options)
    assert target.config["base_url"] == url
    assert target.make_credentials is None


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"requester_pays": True}, "requester_pays"),
        ({"session_kwargs": {"trust_env": True}}, "session_kwargs"),
        ({"version_aware": True}, "version_aware"),
        ({"requests_timeout": 3}, "requests_timeout"),
        ({"unknown": 1}, "unknown"),
        ({"endpoint_url": "http://host/path"}, "endpoint_url"),
    ],
)
def test_other_options_are_not_supported(options, name):
    with pytest.raises(UnsupportedOptionError, match=name):
        gcs_target("bucket", ANONYMOUS | options)


@pytest.mark.parametrize(
    "variable",
    [
        *("GOOGLE_API_USE_CLIENT_CERTIFICATE", "GOOGLE_CLOUD_UNIVERSE_DOMAIN", "HTTPS_PROXY"),
        *("GOOGLE_SERVICE_ACCOUNT_KEY", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"),
    ],
)
def test_other_variables_are_not_supported(monkeypatch, variable):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UnsupportedOptionError, match=variable):
        gcs_target("bucket", ANONYMOUS)


def test_other_buckets_are_not_supported():
    with pytest.raises(UnsupportedOptionError, match="bucket"):
        gcs_target("a/b", ANONYMOUS)


def test_all_options_of_gcsfs_are_known_or_not_supported():
    """A new option of gcsfs must be added to a table on purpose, or it disables obstore."""
    core = pytest.importorskip("gcsfs.core", reason="python -m pip install -e '.[servers]'")
    names = {*inspect.signature(core.GCSFileSystem.__init__).parameters} - {"self", "kwargs"}
    known = {*gcs._OPTIONS.settings, *gcs._OPTIONS.harmless}
    unsupported = {
        *("asynchronous", "loop", "requester_pays", "requests_timeout", "session_kwargs"),
        *("timeout", "version_aware"),
    }
    assert names <= known | unsupported

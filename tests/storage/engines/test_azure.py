"""Tests of the translation of adlfs's options to obstore's. adlfs reads if it is impossible."""

from __future__ import annotations

import base64
import inspect
import os

import pytest

from npstream.storage.engines import azure
from npstream.storage.engines.azure import azure_target
from npstream.storage.engines.options import UnsupportedOptionError

adlfs = pytest.importorskip("adlfs", reason="python -m pip install -e '.[servers]'")

KEY = base64.b64encode(bytes(64)).decode()
ACCOUNT = {"account_name": "mine", "account_key": KEY}
SIGNATURE = "sv=2024-01-01&sig=abc%3D"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in os.environ:
        if name.startswith("AZURE_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def adlfs_account(options):
    """Return the URL and the key of the account that adlfs reads with."""
    client = adlfs.AzureBlobFileSystem(**options, skip_instance_cache=True).service_client
    url = client.url.partition("?")[0].rstrip("/")
    return url, getattr(client.credential, "account_key", None)


def obstore_account(options):
    """Return the URL and the key of the account that obstore reads with."""
    target = azure_target("box", options)
    credentials = target.make_credentials()() if target.make_credentials else {}
    return target.config["endpoint"], credentials.get("access_key")


CASES = [
    ACCOUNT,
    ACCOUNT | {"account_host": "mine.blob.core.usgovcloudapi.net"},
    {"account_name": "mine", "sas_token": SIGNATURE},
    {"account_name": "mine", "sas_token": f"?{SIGNATURE}"},
    {"account_name": "mine", "anon": True},
    {"connection_string": f"AccountName=mine;AccountKey={KEY};EndpointSuffix=core.other.example"},
    {"connection_string": f"DefaultEndpointsProtocol=http;AccountName=mine;AccountKey={KEY};"},
    {
        "connection_string": "DefaultEndpointsProtocol=http;AccountName=mine;"
        f"AccountKey={KEY};EndpointSuffix=core.other.example"
    },
    {"connection_string": f"BlobEndpoint=http://h:1/mine;AccountName=mine;AccountKey={KEY}"},
    ACCOUNT | {"connection_string": f"AccountName=other;AccountKey={KEY}"},
]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_options_select_the_account_of_adlfs(number):
    assert obstore_account(CASES[number]) == adlfs_account(CASES[number])


def test_variables_select_the_account_of_adlfs(monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "fromenv")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    assert (
        obstore_account({}) == adlfs_account({}) == ("https://fromenv.blob.core.windows.net", KEY)
    )
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"AccountName=conn;AccountKey={KEY}")
    assert obstore_account({}) == adlfs_account({}) == ("https://conn.blob.core.windows.net", KEY)


def test_a_signature_is_used_without_a_question_mark():
    target = azure_target("box", {"account_name": "mine", "sas_token": f"?{SIGNATURE}"})
    assert target.make_credentials()() == {"sas_token": SIGNATURE, "expires_at": None}


def test_a_url_may_contain_the_account():
    target = azure_target("box@mine.dfs.core.windows.net", {"account_key": KEY})
    assert (target.container, target.config["account_name"]) == ("box", "mine")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"credential": object()}, "credential"),
        ({"client_id": "x"}, "client_id"),
        ({"location_mode": "secondary"}, "location_mode"),
        ({"version_aware": True}, "version_aware"),
        ({"timeout": 3}, "timeout"),
        ({"account_key": None}, "credentials"),
        ({"account_name": None}, "account"),
        ({"connection_string": "UseDevelopmentStorage=true"}, "connection_string"),
    ],
)
def test_other_options_are_not_supported(options, name):
    with pytest.raises(UnsupportedOptionError, match=name):
        azure_target("box", ACCOUNT | options)


@pytest.mark.parametrize(
    "variable",
    ["AZURE_STORAGE_CLIENT_ID", "AZURE_USE_AZURE_CLI", "AZURE_STORAGE_TOKEN", "ALL_PROXY"],
)
def test_other_variables_are_not_supported(monkeypatch, variable):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UnsupportedOptionError, match=variable):
        azure_target("box", ACCOUNT)


def test_all_options_of_adlfs_are_known_or_not_supported():
    """A new option of adlfs must be added to a table on purpose, or it disables obstore."""
    signature = inspect.signature(adlfs.AzureBlobFileSystem.__init__)
    names = {*signature.parameters} - {"self", "kwargs"}
    known = {*azure._OPTIONS.settings, *azure._OPTIONS.harmless}
    unsupported = {
        *("asynchronous", "client_id", "client_secret", "connection_timeout", "credential"),
        *("location_mode", "loop", "read_timeout", "request_session", "socket_timeout"),
        *("tenant_id", "timeout", "version_aware"),
    }
    assert names <= known | unsupported

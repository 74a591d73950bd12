"""The options of adlfs as options of obstore.

`azure_target` supports an account key, a shared access signature, and anonymous reads. Other
credentials, such as those of a managed identity, raise `UnsupportedOptionError`. Then adlfs reads
the store.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from npstream.storage.engines.options import (
    NO_TIMEOUT,
    OptionTable,
    Target,
    UnsupportedOptionError,
    proxy_variable,
)

__all__ = ["azure_target"]

_OPTIONS = OptionTable(
    {
        "account_host": "host",
        "account_key": "key",
        "account_name": "account",
        "anon": "anonymous",
        "connection_string": "connection",
        "sas_token": "signature",
    },
    frozenset(
        {
            *("assume_container_exists", "blocksize", "default_cache_type", "default_fill_cache"),
            *("listings_expiry_time", "max_concurrency", "max_paths", "skip_instance_cache"),
            *("use_listings_cache",),
        }
    ),
)
_VARIABLES = OptionTable(
    {
        "AZURE_STORAGE_ACCOUNT_KEY": "key",
        "AZURE_STORAGE_ACCOUNT_NAME": "account",
        "AZURE_STORAGE_ANON": "anonymous",
        "AZURE_STORAGE_CONNECTION_STRING": "connection",
        "AZURE_STORAGE_SAS_TOKEN": "signature",
    },
    frozenset(
        {
            # npstream passes the values of these as options, so they are in `options` already.
            *("AZURE_ACCOUNT_NAME", "AZURE_ACCOUNT_ACCESS_KEY"),
            # These concern credentials that `azure_target` does not support.
            *("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID"),
            *("AZURE_FEDERATED_TOKEN_FILE", "AZURE_AUTHORITY_HOST", "AZURE_USERNAME"),
            *("AZURE_PASSWORD", "AZURE_CONFIG_DIR", "AZURE_SUBSCRIPTION_ID"),
            *("AZURE_TOKEN_CREDENTIALS", "AZURE_HTTP_USER_AGENT"),
        }
    ),
)
_CONNECTION = OptionTable(
    {
        "ACCOUNTKEY": "key",
        "ACCOUNTNAME": "account",
        "BLOBENDPOINT": "endpoint",
        "DEFAULTENDPOINTSPROTOCOL": "protocol",
        "ENDPOINTSUFFIX": "suffix",
        "SHAREDACCESSSIGNATURE": "signature",
    },
    frozenset(
        {
            *("BLOBSECONDARYENDPOINT", "DFSENDPOINT", "FILEENDPOINT", "FILESECONDARYENDPOINT"),
            *("QUEUEENDPOINT", "QUEUESECONDARYENDPOINT", "TABLEENDPOINT", "TABLESECONDARYENDPOINT"),
        }
    ),
)
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_CONTAINER = re.compile(r"[a-z0-9$][a-z0-9-]{1,62}")
_ENDPOINT = re.compile(r"https?://[^?#@]+")

_CONTAINER_AT_ACCOUNT = re.compile(r"([^@]+)@([^@.]+)\.(?:dfs|blob)\.core\.windows\.net")


def azure_target(container: str, options: Mapping[str, Any]) -> Target:
    """Return how obstore reaches a container with the settings that adlfs would use.

    Parameters
    ----------
    container : str
        The name of the container, or ``container@account.dfs.core.windows.net``.
    options : mapping
        The options of the user for adlfs.

    Raises
    ------
    UnsupportedOptionError
        If obstore cannot read the container with these settings.
    """
    url_settings = {}
    if (match := _CONTAINER_AT_ACCOUNT.fullmatch(container)) is not None:
        container, url_settings["account"] = match.groups()
    if not _CONTAINER.fullmatch(container):
        raise UnsupportedOptionError("the name of the container")
    settings = url_settings | _settings(options)
    account, suffix = settings.get("account"), settings.get("suffix", "core.windows.net")
    # Azure's SDK ignores the protocol in a connection string that has no EndpointSuffix.
    protocol = settings.get("protocol", "https") if "suffix" in settings else "https"
    endpoint = settings.get("endpoint") or f"{protocol}://{account}.blob.{suffix}"
    if settings.get("host"):
        endpoint = f"https://{settings['host']}"
    if account is None or not _ACCOUNT.fullmatch(account) or not _ENDPOINT.fullmatch(endpoint):
        raise UnsupportedOptionError("the account or its endpoint")
    credentials: dict[str, Any] | None = None
    if settings.get("key"):
        credentials = {"access_key": settings["key"], "expires_at": None}
    elif settings.get("signature"):
        credentials = {"sas_token": settings["signature"].lstrip("?"), "expires_at": None}
    elif not settings.get("anonymous"):
        raise UnsupportedOptionError("other credentials than a key or a signature")
    config = {"account_name": account, "endpoint": endpoint.rstrip("/")}
    client = {
        "timeout": NO_TIMEOUT,
        "connect_timeout": NO_TIMEOUT,
        "allow_http": endpoint.startswith("http://"),
        "allow_invalid_certificates": False,
    }
    make = (lambda: lambda: credentials) if credentials else None
    return Target("AzureStore", container, config, client, make)


def _settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings from options and environment variables, with the precedence of adlfs."""
    variables = _VARIABLES.translate(
        {name: value for name, value in os.environ.items() if name.startswith("AZURE_")}
    )
    if (proxy := proxy_variable(os.environ)) is not None:
        raise UnsupportedOptionError(proxy)
    if str(variables.pop("anonymous", "")).lower() not in ("false", "0", "f", ""):
        variables["anonymous"] = True
    own = {name: value for name, value in _OPTIONS.translate(options).items() if value != ""}
    settings = variables | own
    if connection := settings.pop("connection", None):
        # With a connection string, adlfs ignores all other options for the account.
        parts = [part.partition("=") for part in str(connection).rstrip(";").split(";")]
        settings = _CONNECTION.translate(
            {name.upper(): value for name, _, value in parts}, "connection_string: "
        )
    return settings

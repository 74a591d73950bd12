"""The options of gcsfs as options of obstore."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from typing import Any

from npstream.storage.engines.options import (
    NO_TIMEOUT,
    OptionTable,
    Target,
    UnsupportedOptionError,
    proxy_variable,
)

__all__ = ["gcs_target"]

_OPTIONS = OptionTable(
    {
        "access": "access",
        "endpoint_url": "endpoint",
        "project": "project",
        "token": "token",
    },
    frozenset(
        {
            *("block_size", "cache_timeout", "check_connection", "consistency"),
            *("default_location", "listings_expiry_time", "max_paths", "secure_serialize"),
            *("skip_instance_cache", "use_listings_cache"),
        }
    ),
)
_VARIABLES = OptionTable(
    {"STORAGE_EMULATOR_HOST": "emulator"},
    frozenset(
        {
            # gcsfs uses some of these to find credentials, and ignores the others. None of them
            # affects obstore, because npstream sets its URL and credentials.
            *("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", "GOOGLE_SKIP_SIGNATURE"),
            *("GOOGLE_BASE_URL", "GOOGLE_CLOUD_QUOTA_PROJECT", "GOOGLE_CLOUD_REGION"),
            *("GOOGLE_CLOUD_LOCATION", "GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_API_KEY"),
        }
    ),
)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")

_URL = "https://storage.googleapis.com"

_ZONAL = "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"
"""The environment variable with which gcsfs reads zonal buckets. obstore cannot read them."""


def gcs_target(bucket: str, options: Mapping[str, Any]) -> Target:
    """Return how obstore reaches a bucket with the settings that gcsfs would use.

    Parameters
    ----------
    bucket : str
    options : mapping
        The options of the user for gcsfs.

    Raises
    ------
    UnsupportedOptionError
        If obstore cannot read the bucket with these settings.
    """
    settings = _OPTIONS.translate(options)
    variables = _VARIABLES.translate(
        {
            name: value
            for name, value in os.environ.items()
            if name.startswith("GOOGLE_") or name == "STORAGE_EMULATOR_HOST"
        }
    )
    if os.environ.get(_ZONAL, "").lower() in ("true", "1"):
        raise UnsupportedOptionError(_ZONAL)
    if (proxy := proxy_variable(os.environ)) is not None:
        raise UnsupportedOptionError(proxy)
    if not _BUCKET.fullmatch(bucket):
        raise UnsupportedOptionError("the name of the bucket")
    emulator = variables.get("emulator") or "default"
    if emulator != "default" and not emulator.startswith(("http://", "https://")):
        emulator = f"http://{emulator}"
    endpoint = settings.get("endpoint") or (_URL if emulator == "default" else emulator)
    if re.fullmatch(r"https?://[^/?#@]+/?", endpoint) is None:
        raise UnsupportedOptionError("endpoint_url")
    client = {
        "timeout": NO_TIMEOUT,
        "connect_timeout": NO_TIMEOUT,
        "allow_http": endpoint.startswith("http://"),
        "allow_invalid_certificates": False,
        # Without this header, the server decompresses files stored with gzip, and ignores Range.
        "default_headers": {"accept-encoding": "gzip"},
    }
    token = settings.get("token")
    access = settings.get("access", "full_control")
    make = partial(_credentials, settings.get("project"), access, token)
    config = {"base_url": endpoint.rstrip("/")}
    return Target("GCSStore", bucket, config, client, None if token == "anon" else make)


def _credentials(project: str | None, access: str, token: Any) -> _GoogleCredentials | None:
    """Return obstore's credential provider, or None if gcsfs finds no credentials."""
    google = import_module("gcsfs.credentials").GoogleCredentials(project, access, token)
    return None if google.credentials is None else _GoogleCredentials(google)


class _GoogleCredentials:
    """obstore's credential provider for all kinds of credentials that gcsfs supports.

    Parameters
    ----------
    google : gcsfs.credentials.GoogleCredentials
    """

    def __init__(self, google: Any) -> None:
        self._google = google

    def __call__(self) -> dict[str, Any]:
        """Return the current token; gcsfs renews it before it expires."""
        self._google.maybe_refresh()
        # obstore calls this again if a token expires within five minutes, at most ten times a
        # second. `expires_at` is only one minute ahead, so obstore always calls again, and gcsfs
        # decides when to renew the token.
        expires_at = datetime.now(UTC) + timedelta(minutes=1)
        return {"token": self._google.credentials.token, "expires_at": expires_at}

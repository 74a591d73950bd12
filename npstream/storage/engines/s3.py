"""The options of s3fs as options of obstore.

s3fs takes its settings from options, environment variables and AWS's configuration files. A setting
that the tables of this module do not contain raises `UnsupportedOptionError`. Then s3fs reads the
store.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from configparser import Error as ConfigError
from configparser import RawConfigParser
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from npstream.storage.engines.options import (
    NO_TIMEOUT,
    OptionTable,
    Target,
    UnsupportedOptionError,
    proxy_variable,
)

__all__ = ["s3_target"]

_OPTIONS = OptionTable(
    {
        "key": "access_key",
        "username": "access_key",
        "secret": "secret_key",
        "password": "secret_key",
        "token": "token",
        "anon": "anonymous",
        "endpoint_url": "endpoint",
        "use_ssl": "use_ssl",
        "requester_pays": "requester_pays",
        "profile": "profile",
        "client_kwargs": "client",
        "config_kwargs": "config",
        "s3_additional_kwargs": "request",
    },
    frozenset(
        {
            *("cache_regions", "default_block_size", "default_cache_type", "default_fill_cache"),
            *("fixed_upload_size", "listings_expiry_time", "max_concurrency", "max_paths"),
            *("skip_instance_cache", "use_listings_cache"),
        }
    ),
)
_CLIENT = OptionTable(
    {
        "aws_access_key_id": "access_key",
        "aws_secret_access_key": "secret_key",
        "aws_session_token": "token",
        "endpoint_url": "endpoint",
        "region_name": "region",
        "use_ssl": "use_ssl",
        "verify": "verify",
    }
)
_CONFIG = OptionTable(
    {
        "connect_timeout": "connect_timeout",
        "read_timeout": "read_timeout",
        "region_name": "region",
        "s3": "s3",
        "signature_version": "signature",
    },
    frozenset({"request_checksum_calculation", "response_checksum_validation"}),
)
_ADDRESSING = OptionTable({"addressing_style": "style"})
_REQUEST = OptionTable(
    {"RequestPayer": "payer"},
    # These parameters belong to uploads only.
    frozenset(
        {
            *("ACL", "BucketKeyEnabled", "CacheControl", "ContentType", "Metadata"),
            *("ServerSideEncryption", "SSEKMSKeyId", "StorageClass", "Tagging"),
        }
    ),
)
_PROFILE = OptionTable(
    {
        "aws_access_key_id": "access_key",
        "aws_secret_access_key": "secret_key",
        "aws_session_token": "token",
        "ca_bundle": "verify",
        "endpoint_url": "endpoint",
        "region": "region",
        "s3": "s3",
    },
    frozenset(
        {
            *("cli_auto_prompt", "cli_history", "cli_pager", "max_attempts", "output"),
            *("parameter_validation", "request_checksum_calculation"),
            *("response_checksum_validation", "retry_mode", "sdk_ua_app_id"),
            *("account_id_endpoint_mode", "tcp_keepalive"),
        }
    ),
)
_CREDENTIAL_SOURCES = frozenset(
    {
        *("credential_process", "credential_source", "duration_seconds", "external_id"),
        *("mfa_serial", "role_arn", "role_session_name", "source_profile"),
        *("sso_account_id", "sso_region", "sso_registration_scopes", "sso_role_name"),
        *("sso_session", "sso_start_url", "web_identity_token_file"),
        *("ec2_metadata_service_endpoint", "ec2_metadata_service_endpoint_mode"),
        *("imds_use_ipv6", "metadata_service_num_attempts", "metadata_service_timeout"),
        *("sts_regional_endpoints", "ec2_metadata_v1_disabled"),
    }
)
"""Settings of a profile with which botocore gets temporary credentials."""

_VARIABLES = OptionTable(
    {
        "AWS_CA_BUNDLE": "verify",
        "AWS_DEFAULT_REGION": "region",
        "AWS_ENDPOINT_URL": "endpoint",
        "AWS_ENDPOINT_URL_S3": "s3_endpoint",
    },
    frozenset(
        {
            # Credentials, and the places where botocore looks for them.
            *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
            *("AWS_SECURITY_TOKEN", "AWS_CREDENTIAL_EXPIRATION", "AWS_PROFILE"),
            *("AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"),
            *("AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME", "AWS_WEB_IDENTITY_TOKEN_FILE"),
            *("AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"),
            *("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
            *("AWS_EC2_METADATA_DISABLED", "AWS_EC2_METADATA_SERVICE_ENDPOINT"),
            *("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "AWS_EC2_METADATA_V1_DISABLED"),
            *("AWS_METADATA_SERVICE_TIMEOUT", "AWS_METADATA_SERVICE_NUM_ATTEMPTS"),
            *("AWS_IMDS_USE_IPV6", "AWS_STS_REGIONAL_ENDPOINTS"),
            # botocore ignores these, and `s3_target` overrides them for obstore.
            *("AWS_REGION", "AWS_ENDPOINT", "AWS_SKIP_SIGNATURE", "AWS_REQUEST_PAYER"),
            *("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "AWS_ALLOW_HTTP", "AWS_TOKEN"),
            # These do not affect how a file is read.
            *("AWS_ACCOUNT_ID", "AWS_ACCOUNT_ID_ENDPOINT_MODE", "AWS_DEFAULT_OUTPUT"),
            *("AWS_EXECUTION_ENV", "AWS_MAX_ATTEMPTS", "AWS_PAGER", "AWS_RETRY_MODE"),
            *("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"),
            *("AWS_SDK_LOAD_CONFIG", "AWS_SDK_UA_APP_ID", "AWS_BUCKET", "AWS_BUCKET_NAME"),
            *("AWS_CHECKSUM_ALGORITHM", "AWS_CONDITIONAL_PUT", "AWS_COPY_IF_NOT_EXISTS"),
            *("AWS_DISABLE_BULK_DELETE", "AWS_DISABLE_TAGGING"),
        }
    ),
)
_UNRELATED = ("AWS_LAMBDA_", "AWS_BATCH_", "AWS_CLI_", "AWS_SAGEMAKER_", "AWS_EKS_", "AWS_ECS_")
"""Prefixes of environment variables that neither botocore nor obstore knows."""

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_HOST_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
"""A bucket whose name can be the first part of a host name. TLS allows no dots there."""

_SPECIAL_BUCKET = re.compile(r".*(--x-s3|--op-s3|--ol-s3|-s3alias|\.mrap)")
"""Directory buckets and access points, which have other endpoints."""

_REGION = re.compile(r"(us|eu|ap|sa|ca|me|af|il|mx)(-gov)?-[a-z]+-\d+")
"""The regions whose endpoints are in amazonaws.com."""


def s3_target(bucket: str, options: Mapping[str, Any]) -> Target:
    """Return how obstore reaches a bucket with the settings that s3fs would use.

    Parameters
    ----------
    bucket : str
    options : mapping
        The options of the user for s3fs.

    Raises
    ------
    UnsupportedOptionError
        If obstore cannot read the bucket with these settings.
    """
    settings = _settings(options)
    if not _BUCKET.fullmatch(bucket) or _SPECIAL_BUCKET.fullmatch(bucket):
        raise UnsupportedOptionError("the name of the bucket")
    base = _bucket_url(bucket, settings)
    anonymous = bool(settings.get("anonymous"))
    config = {
        # With virtual_hosted_style_request, the endpoint is the URL of the bucket itself. Both
        # keys are set: otherwise aws_endpoint_url_s3 from the environment would take precedence.
        **dict.fromkeys(("endpoint", "aws_endpoint_url_s3"), base),
        "virtual_hosted_style_request": True,
        "region": settings.get("region") or "us-east-1",
        "request_payer": bool(settings.get("requester_pays")),
        "s3_express": False,
        "unsigned_payload": False,
    }
    client: dict[str, Any] = {
        "timeout": NO_TIMEOUT,
        "connect_timeout": _duration(settings.get("connect_timeout")),
        "allow_http": base.startswith("http://"),
        "allow_invalid_certificates": False,
    }
    if "read_timeout" in settings:
        client["read_timeout"] = _duration(settings["read_timeout"])
    if (verify := settings.get("verify")) is False:
        raise UnsupportedOptionError("verify=False")
    if isinstance(verify, str):
        try:
            client["root_certificate"] = Path(verify).read_bytes()
        except OSError:
            raise UnsupportedOptionError("a file of certificates that cannot be read") from None
    make = None if anonymous else _credentials(settings)
    return Target("S3Store", bucket, config, client, make)


def _settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings, in the precedence of s3fs: options, environment variables, profile."""
    own = _OPTIONS.translate(options)
    client = _CLIENT.translate(own.pop("client", {}), "client_kwargs.")
    config = _CONFIG.translate(own.pop("config", {}), "config_kwargs.")
    request = _REQUEST.translate(own.pop("request", {}), "s3_additional_kwargs.")
    if request:
        own["requester_pays"] = True
    if config.pop("signature", "s3v4") not in ("s3v4", "v4"):
        raise UnsupportedOptionError("config_kwargs.signature_version")
    # s3fs passes its own options and those of client_kwargs to botocore. It rejects an option that
    # has two values, except for use_ssl.
    conflicts = [name for name in own.keys() & client.keys() if own[name] != client[name]]
    if conflicts and conflicts != ["use_ssl"]:
        raise UnsupportedOptionError("client_kwargs together with another option")
    variables = _variables()
    profile = _read_profile(own.get("profile"))
    settings = {**profile, **variables, **config, **own, **client}
    style = _ADDRESSING.translate(settings.get("s3") or {}, "s3.").get("style", "auto")
    if style not in ("auto", "path", "virtual"):
        raise UnsupportedOptionError("s3.addressing_style")
    settings["style"] = style
    # All credentials are from the first source that has any: a profile does not add a missing one.
    # If a profile is given, botocore ignores the credentials in environment variables.
    for source in ({**own, **client}, _environment_keys() if "profile" not in own else {}, profile):
        if source.keys() & {"access_key", "secret_key", "token"}:
            keys = {name: source.get(name) for name in ("access_key", "secret_key", "token")}
            break
    else:
        keys = {}
    return {**settings, "keys": keys}


def _variables() -> dict[str, Any]:
    """Return the settings of environment variables, except for credentials."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("AWS_") and not name.startswith(_UNRELATED)
    }
    variables = _VARIABLES.translate(environment)
    if (proxy := proxy_variable(os.environ)) is not None:
        raise UnsupportedOptionError(proxy)
    settings = {name: value for name, value in variables.items() if value}
    if (endpoint := settings.pop("s3_endpoint", None)) is not None:
        settings["endpoint"] = endpoint
    return settings


def _environment_keys() -> dict[str, Any]:
    """Return the credentials in environment variables, unless they expire."""
    if os.environ.get("AWS_CREDENTIAL_EXPIRATION"):
        return {}  # `_BotocoreCredentials` provides such credentials: botocore renews them
    token = os.environ.get("AWS_SESSION_TOKEN") or os.environ.get("AWS_SECURITY_TOKEN")
    keys = {
        "access_key": os.environ.get("AWS_ACCESS_KEY_ID"),
        "secret_key": os.environ.get("AWS_SECRET_ACCESS_KEY"),
    }
    found = {name: value for name, value in keys.items() if value}
    return found | ({"token": token} if token and found else {})


def _read_profile(name: str | None) -> dict[str, Any]:
    """Return the settings of a profile in AWS's configuration files."""
    files = [
        os.path.expanduser(os.environ.get(variable) or default)
        for variable, default in (
            ("AWS_CONFIG_FILE", "~/.aws/config"),
            ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        )
    ]
    chosen = name or os.environ.get("AWS_DEFAULT_PROFILE") or os.environ.get("AWS_PROFILE")
    profile = chosen or "default"
    options: dict[str, Any] = {}
    has_profile = False
    for file, prefix in zip(files, ("profile ", ""), strict=True):
        if not os.path.isfile(file):
            continue
        parser = RawConfigParser(default_section="")
        try:
            parser.read(file, encoding="utf-8")
        except (ConfigError, OSError, UnicodeDecodeError):
            raise UnsupportedOptionError("AWS's configuration file") from None
        # The config file has the sections "profile NAME", and "default" without the prefix as well.
        for section in (profile, prefix + profile) if profile == "default" else (prefix + profile,):
            if parser.has_section(section):
                has_profile = True
                options.update(parser.items(section))
    if chosen and not has_profile:
        raise UnsupportedOptionError("a profile that does not exist")
    if sources := options.keys() & _CREDENTIAL_SOURCES:
        # botocore decides whether the sources or the keys of such a profile take precedence.
        for key in (*sources, "aws_access_key_id", "aws_secret_access_key", "aws_session_token"):
            options.pop(key, None)
    if "s3" in options:
        options["s3"] = _nested(options["s3"])
    return _PROFILE.translate(options, "profile: ")


def _nested(text: str) -> dict[str, str]:
    """Return the settings in an indented block of a configuration file."""
    lines = [line for line in text.splitlines() if line.strip()]
    return {
        name.strip(): value.strip() for name, _, value in (line.partition("=") for line in lines)
    }


def _bucket_url(bucket: str, settings: Mapping[str, Any]) -> str:
    """Return the URL of a bucket as botocore forms it."""
    endpoint, style, region = settings.get("endpoint"), settings["style"], settings.get("region")
    secure = bool(settings.get("use_ssl", True))
    if endpoint:
        parts = urlsplit(endpoint)
        host = parts.hostname or ""
        if parts.scheme not in ("http", "https") or parts.query or parts.fragment or parts.username:
            raise UnsupportedOptionError("the form of the endpoint")
        if "s3-accelerate" in host:
            raise UnsupportedOptionError("the accelerate endpoint")
        base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        if style != "virtual":
            return f"{base}/{bucket}"
        if not _HOST_BUCKET.fullmatch(bucket) or re.fullmatch(r"[\d.]+|.*:.*", host):
            raise UnsupportedOptionError("s3.addressing_style")
        return f"{parts.scheme}://{bucket}.{parts.netloc}{parts.path.rstrip('/')}"
    if region and not _REGION.fullmatch(region):
        raise UnsupportedOptionError("the region")
    if not _HOST_BUCKET.fullmatch(bucket) and style != "path":
        raise UnsupportedOptionError("the name of the bucket")
    scheme = "https" if secure else "http"
    host = "s3.amazonaws.com" if region in (None, "us-east-1") else f"s3.{region}.amazonaws.com"
    return f"{scheme}://{host}/{bucket}" if style == "path" else f"{scheme}://{bucket}.{host}"


def _duration(seconds: Any) -> str:
    """Return a timeout in obstore's notation."""
    if seconds is None:
        return NO_TIMEOUT
    if not isinstance(seconds, int | float) or seconds <= 0:
        raise UnsupportedOptionError("config_kwargs: a timeout")
    return f"{max(round(seconds * 1000), 1)}ms"


def _credentials(settings: Mapping[str, Any]) -> Callable[[], Any]:
    """Return a function that returns obstore's credential provider."""
    keys = settings["keys"]
    if not keys:
        return partial(_BotocoreCredentials, settings.get("profile"))
    if not keys.get("access_key") or not keys.get("secret_key"):
        raise UnsupportedOptionError("a key without a secret")
    credentials = {
        "access_key_id": keys["access_key"],
        "secret_access_key": keys["secret_key"],
        "token": keys.get("token") or None,
        "expires_at": None,
    }
    return lambda: lambda: credentials


class _BotocoreCredentials:
    """obstore's credential provider for the credentials that botocore finds, which may expire.

    Parameters
    ----------
    profile : str or None
    """

    def __init__(self, profile: str | None) -> None:
        session = import_module("botocore.session").Session(profile=profile)
        self._credentials = session.get_credentials()
        if self._credentials is None:
            raise UnsupportedOptionError("no credentials")

    def __call__(self) -> dict[str, Any]:
        """Return the current credentials; botocore renews them before they expire."""
        frozen = self._credentials.get_frozen_credentials()
        expires_at = None
        if hasattr(self._credentials, "refresh_needed"):
            # obstore calls this again if keys expire within five minutes, at most ten times a
            # second. `expires_at` is only one minute ahead, so obstore always calls again, and
            # botocore decides when to renew the keys.
            expires_at = datetime.now(UTC) + timedelta(minutes=1)
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": expires_at,
        }

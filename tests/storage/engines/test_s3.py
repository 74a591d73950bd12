"""Tests of the translation of s3fs's options to obstore's. s3fs reads if it is impossible."""

from __future__ import annotations

import asyncio
import os
import re

import fsspec
import pytest
from fsspec.asyn import get_loop

from npstream.storage.engines.options import UnsupportedOptionError
from npstream.storage.engines.s3 import s3_target

s3fs = pytest.importorskip("s3fs", reason="python -m pip install -e '.[servers]'")

KEYS = {"key": "AK", "secret": "secret"}

SCOPE = re.compile(r"Credential=([^/]+)/\d{8}/([^/]+)/s3/aws4_request")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    for name in os.environ:
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def s3fs_request(bucket, options):
    """Return what s3fs sends to read an object.

    Returns the URL of the bucket, the access key, the region, the session token, and True if the
    requester pays.
    """
    requests = []

    def record(request, **_):
        requests.append(request)
        raise ConnectionAbortedError

    async def send():
        filesystem = s3fs.S3FileSystem(
            **options, skip_instance_cache=True, asynchronous=True, loop=get_loop()
        )
        client = await filesystem.set_session()
        client.meta.events.register("before-send.s3.GetObject", record)
        with pytest.raises(ConnectionAbortedError):
            await client.get_object(Bucket=bucket, Key="folder/key", **filesystem.req_kw)
        await client.__aexit__(None, None, None)

    asyncio.run_coroutine_threadsafe(send(), get_loop()).result()
    headers = {
        name.lower(): value if isinstance(value, str) else value.decode()
        for name, value in requests[0].headers.items()
    }
    scope = SCOPE.search(headers.get("authorization", ""))
    return (
        requests[0].url.removesuffix("/folder/key"),
        *(scope.groups() if scope else (None, None)),
        headers.get("x-amz-security-token"),
        "x-amz-request-payer" in headers,
    )


def obstore_request(bucket, options):
    """Return what obstore sends to read an object, as `s3fs_request` does."""
    target = s3_target(bucket, options)
    provider = target.make_credentials() if target.make_credentials else None
    credentials = provider() if provider else None
    return (
        target.config["endpoint"],
        credentials and credentials["access_key_id"],
        credentials and target.config["region"],
        credentials and credentials["token"],
        target.config["request_payer"],
    )


CASES = {
    "nothing": KEYS,
    "token": KEYS | {"token": "t"},
    "anonymous": {"anon": True},
    "anonymous with keys": KEYS | {"anon": True},
    "user name": {"username": "AK", "password": "secret"},
    "region": KEYS | {"client_kwargs": {"region_name": "eu-west-1"}},
    "region in config": KEYS | {"config_kwargs": {"region_name": "ap-south-1"}},
    "government": KEYS | {"client_kwargs": {"region_name": "us-gov-west-1"}},
    "first region": KEYS | {"client_kwargs": {"region_name": "us-east-1"}},
    "endpoint": KEYS | {"endpoint_url": "http://127.0.0.1:9000"},
    "endpoint with slash": KEYS | {"endpoint_url": "https://host.example/"},
    "endpoint with path": KEYS | {"endpoint_url": "https://host.example/s3/"},
    "endpoint in client": KEYS | {"client_kwargs": {"endpoint_url": "http://host.example:9000"}},
    "endpoint and region": KEYS
    | {"endpoint_url": "https://r2.example", "client_kwargs": {"region_name": "auto"}},
    "Amazon's endpoint": KEYS
    | {
        "endpoint_url": "https://s3.eu-west-1.amazonaws.com",
        "client_kwargs": {"region_name": "eu-west-1"},
    },
    "path style": KEYS
    | {
        "config_kwargs": {"s3": {"addressing_style": "path"}},
        "client_kwargs": {"region_name": "eu-west-1"},
    },
    "virtual style": KEYS
    | {
        "endpoint_url": "https://oss-cn-hangzhou.aliyuncs.com",
        "config_kwargs": {"s3": {"addressing_style": "virtual"}},
    },
    "payer": KEYS | {"requester_pays": True},
    "payer in request": KEYS | {"s3_additional_kwargs": {"RequestPayer": "requester"}},
    "upload": KEYS | {"s3_additional_kwargs": {"ACL": "private", "ServerSideEncryption": "AES256"}},
    "no TLS": KEYS | {"use_ssl": False, "client_kwargs": {"region_name": "eu-west-1"}},
    "signature": KEYS | {"config_kwargs": {"signature_version": "s3v4"}},
    "keys in client": {
        "client_kwargs": {"aws_access_key_id": "CK", "aws_secret_access_key": "secret"}
    },
    "timeouts": KEYS | {"config_kwargs": {"connect_timeout": 3, "read_timeout": 0.5}},
    "cache": KEYS | {"cache_regions": False, "default_block_size": 1 << 20, "max_concurrency": 3},
}


@pytest.mark.parametrize("name", CASES)
def test_options_are_those_of_s3fs(name):
    bucket = "a-bucket"
    if name == "payer in request":
        assert obstore_request(bucket, CASES[name])[-1]  # s3fs adds it to each call itself
    elif name != "upload":
        assert obstore_request(bucket, CASES[name]) == s3fs_request(bucket, CASES[name])
    else:  # these options do not change reads
        assert obstore_request(bucket, CASES[name]) == obstore_request(bucket, KEYS)


@pytest.mark.parametrize(
    "variables",
    [
        {"AWS_ACCESS_KEY_ID": "EK", "AWS_SECRET_ACCESS_KEY": "s"},
        {"AWS_ACCESS_KEY_ID": "EK", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t"},
        {"AWS_ACCESS_KEY_ID": "EK", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SECURITY_TOKEN": "t"},
        {"AWS_DEFAULT_REGION": "eu-north-1", "AWS_REGION": "us-west-2"},
        {"AWS_REGION": "us-west-2"},
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"},
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:2"},
        {"AWS_ENDPOINT": "http://127.0.0.1:1", "AWS_SKIP_SIGNATURE": "true"},
        {"AWS_REQUEST_PAYER": "requester", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true"},
        {"AWS_MAX_ATTEMPTS": "9", "AWS_RETRY_MODE": "adaptive", "AWS_LAMBDA_X": "y"},
    ],
    ids=lambda variables: " ".join(variables),
)
@pytest.mark.parametrize("options", [KEYS, {"anon": True}], ids=["keys", "anonymous"])
def test_variables_are_those_of_s3fs(monkeypatch, variables, options):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if "AWS_ACCESS_KEY_ID" in variables and options is KEYS:
        options = {}
    assert obstore_request("a-bucket", options) == s3fs_request("a-bucket", options)


PROFILES = """
[default]
region = eu-central-1
[profile mine]
aws_access_key_id = PK
aws_secret_access_key = secret
aws_session_token = pt
endpoint_url = http://127.0.0.1:7
output = json
[profile styled]
aws_access_key_id = SK
aws_secret_access_key = secret
region = us-west-2
s3 =
    addressing_style = path
[profile process]
aws_access_key_id = CK
aws_secret_access_key = secret
credential_process = echo '{"Version": 1, "AccessKeyId": "TK", "SecretAccessKey": "secret"}'
[profile keys]
credential_process = false
"""
CREDENTIALS = """
[default]
aws_access_key_id = DK
aws_secret_access_key = secret
[other]
aws_access_key_id = OK
aws_secret_access_key = secret
region = sa-east-1
[keys]
aws_access_key_id = FK
aws_secret_access_key = secret
"""


@pytest.mark.parametrize("profile", [None, "default", "mine", "styled", "other", "process", "keys"])
@pytest.mark.parametrize("has_keys", [False, True])
def test_profiles_are_those_of_s3fs(monkeypatch, tmp_path, profile, has_keys):
    (tmp_path / "config").write_text(PROFILES)
    (tmp_path / "credentials").write_text(CREDENTIALS)
    if has_keys:  # a profile in the options takes precedence over them; AWS_PROFILE does not
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "EK")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    options = {} if profile is None else {"profile": profile}
    assert obstore_request("a-bucket", options) == s3fs_request("a-bucket", options)
    if profile is not None:
        monkeypatch.setenv("AWS_PROFILE", profile)
        assert obstore_request("a-bucket", {}) == s3fs_request("a-bucket", {})


def test_the_role_of_a_profile_takes_precedence_over_its_keys(monkeypatch, tmp_path):
    role = "role_arn = arn:aws:iam::123456789012:role/reader\nsource_profile = default\n"
    (tmp_path / "config").write_text(f"[default]\n{role}")
    (tmp_path / "credentials").write_text(CREDENTIALS)
    temporary = {"AccessKeyId": "RK", "SecretAccessKey": "secret", "SessionToken": "rt"}
    monkeypatch.setattr(
        "botocore.credentials.AssumeRoleCredentialFetcher._get_credentials",
        lambda fetcher: {"Credentials": temporary | {"Expiration": "2100-01-01T00:00:00Z"}},
    )
    _, key, _, token, _ = obstore_request("a-bucket", {})
    assert (key, token) == ("RK", "rt")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"session": object()}, "session"),
        ({"version_aware": True}, "version_aware"),
        ({"loop": object()}, "loop"),
        ({"unknown": 1}, "unknown"),
        ({"client_kwargs": {"verify": False}}, "verify"),
        ({"client_kwargs": {"verify": "none.pem"}}, "certificates"),
        ({"client_kwargs": {"api_version": "2006-03-01"}}, "client_kwargs.api_version"),
        ({"config_kwargs": {"proxies": {"https": "http://x"}}}, "config_kwargs.proxies"),
        ({"config_kwargs": {"signature_version": "s3"}}, "config_kwargs.signature_version"),
        ({"config_kwargs": {"max_pool_connections": 3}}, "config_kwargs.max_pool_connections"),
        ({"config_kwargs": {"s3": {"use_accelerate_endpoint": True}}}, "use_accelerate_endpoint"),
        ({"config_kwargs": {"connect_timeout": "x"}}, "timeout"),
        ({"s3_additional_kwargs": {"SSECustomerKey": "x"}}, "s3_additional_kwargs.SSECustomerKey"),
        ({"client_kwargs": {"region_name": "cn-north-1"}}, "region"),
        ({"client_kwargs": {"aws_access_key_id": "other"}}, "client_kwargs"),
        ({"endpoint_url": "http://user@host"}, "endpoint"),
        ({"endpoint_url": "https://s3-accelerate.amazonaws.com"}, "accelerate"),
        ({"profile": "absent"}, "profile"),
        ({"secret": None}, "secret"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_options_are_not_supported(options, name):
    with pytest.raises(UnsupportedOptionError, match=re.escape(name)):
        s3_target("a-bucket", KEYS | options)


@pytest.mark.parametrize(
    "variable",
    [
        *("AWS_USE_DUALSTACK_ENDPOINT", "AWS_USE_FIPS_ENDPOINT", "AWS_DEFAULTS_MODE"),
        *("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "AWS_PROXY_URL", "AWS_SSE_CUSTOMER_KEY_BASE64"),
        *("AWS_UNHEARD_OF", "HTTPS_PROXY", "http_proxy"),
    ],
)
def test_other_variables_are_not_supported(monkeypatch, variable):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UnsupportedOptionError, match=variable):
        s3_target("a-bucket", KEYS)


@pytest.mark.parametrize(
    "text", ["use_fips_endpoint = true", "services = mine", "s3 =\n  use_dualstack_endpoint = true"]
)
def test_other_settings_of_profiles_are_not_supported(tmp_path, text):
    (tmp_path / "config").write_text(f"[default]\n{text}\n")
    name = text.split("\n")[-1].partition("=")[0].strip()
    with pytest.raises(UnsupportedOptionError, match=name):
        s3_target("a-bucket", KEYS)


@pytest.mark.parametrize(
    "bucket",
    [
        *("arn:aws:s3:eu-west-1:123456789012:accesspoint", "x--use1-az4--x-s3", "alias-s3alias"),
        *("with.dots", "UPPER", "a_b", "", "a:b"),
    ],
)
def test_other_buckets_are_not_supported(bucket):
    with pytest.raises(UnsupportedOptionError, match="bucket"):
        s3_target(bucket, KEYS)
    if bucket in ("with.dots", "a_b"):
        options = KEYS | {"endpoint_url": "http://127.0.0.1:9000"}
        assert obstore_request(bucket, options) == s3fs_request(bucket, options)


def test_certificates_are_read_for_obstore(tmp_path, monkeypatch):
    file = tmp_path / "ca.pem"
    file.write_bytes(b"certificates")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(file))
    assert s3_target("a-bucket", KEYS).client["root_certificate"] == b"certificates"


def test_all_options_of_s3fs_are_known_or_not_supported():
    """A new option of s3fs must be added to a table on purpose, or it disables obstore."""
    import inspect

    from npstream.storage.engines import s3

    names = {*inspect.signature(s3fs.S3FileSystem.__init__).parameters} - {"self", "kwargs"}
    known = {*s3._OPTIONS.settings, *s3._OPTIONS.harmless}
    unsupported = {"session", "version_aware", "asynchronous", "loop", "local_expiry_check"}
    assert names <= known | unsupported
    assert fsspec.get_filesystem_class("s3") is s3fs.S3FileSystem

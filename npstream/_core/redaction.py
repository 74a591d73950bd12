"""Redaction of secrets in messages: secrets in URLs, in drivers' options, in the environment.

The messages of drivers quote their input, and so may contain secrets: a URL with its query, a
header, or text of the form ``key:secret@bucket`` that a driver takes for the name of a bucket. So
every message of a driver passes through a `Redactor` before it is shown. URLs are shown as
`redact_url` returns them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus

__all__ = ["Redactor", "location_hash", "redact", "redact_url", "secret_strings", "url_secrets"]

MASK = "***"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*:/{1,2}")
"""A scheme, or a chain of several. One slash is accepted, as it is a common typing error."""

_HOST = re.compile(r"(?:\[[^\]@]*\]|[^:@\[\]]*)(?::[0-9]*)?")
"""A host, or a bucket, with or without a port."""

_USER_SCHEMES = {"sftp", "ssh", "ftp", "oci", "az", "abfs", "abfss", "azure", "azure-dl", "adl"}
"""Schemes whose URLs have a user, a bucket or a container before an ``@``."""

_PORT_SCHEMES = {"http", "https", "sftp", "ssh", "ftp", "smb", "webdav", "webhdfs", "hdfs"}
"""Schemes whose URLs have a host, and so may have a port."""

_SECRET_NAME = re.compile(
    r"key|secret|token|pass|pwd|cred|sas|connection|auth|sign|cookie|header|private|bearer|jwt",
    re.IGNORECASE,
)
"""Parts of the names of options that are secret, unless `_PUBLIC_NAME` matches the whole name."""

_PUBLIC_NAME = re.compile(
    r"(?:\w*_)?(?:url|uri|host|hostname|endpoint|port|region|region_name|bucket|container|project"
    r"|namespace|profile|user|username|account_name|account_host|protocol|location|encoding"
    r"|compartment_id|revision|signature_version|addressing_style|checksum_calculation"
    r"|checksum_validation|access|consistency|filename|file|cert|bundle|config|ssl|verify)",
    re.IGNORECASE,
)
"""Names of options that are not secret, such as addresses, which users need to understand errors.

If such a value is a URL, only the URL's secrets are removed. Values of other options are removed
entirely.
"""

_SERVICE_OPTIONS = {
    **dict.fromkeys(("endpoint", "endpoint_url", "service_endpoint", "blobendpoint"), "endpoint"),
    **dict.fromkeys(("host", "hostname", "account_host", "endpointsuffix"), "host"),
    "port": "port",
    **dict.fromkeys(("account_name", "accountname"), "account"),
    **dict.fromkeys(("region", "region_name"), "region"),
}
"""Options, and fields of connection strings, that identify a service.

Each maps to the name that represents it in the text that `location_hash` hashes.
"""

_SERVICE_VARIABLES = {
    "s3": {
        "S3_ENDPOINT_URL": "endpoint",
        "AWS_ENDPOINT_URL": "endpoint",
        "AWS_ENDPOINT_URL_S3": "endpoint",
        "AWS_REGION": "region",
        "AWS_DEFAULT_REGION": "region",
    },
    "gs": {"STORAGE_EMULATOR_HOST": "endpoint"},
    "az": {
        "AZURE_ACCOUNT_NAME": "account_name",
        "AZURE_STORAGE_ACCOUNT_NAME": "account_name",
        "AZURE_STORAGE_CONNECTION_STRING": "connection_string",
    },
    "hf": {"HF_ENDPOINT": "endpoint"},
}
"""Environment variables from which drivers read such options, by scheme."""

_SCHEME_ALIASES = {
    "s3a": "s3",
    "gcs": "gs",
    **dict.fromkeys(("abfs", "abfss", "azure", "azure-dl"), "az"),
}
"""Alias of a scheme -> key of `_SERVICE_VARIABLES`."""

_PUBLIC_VALUES = {
    *("true", "false", "none", "null", "auto", "default"),
    *("anon", "cloud", "google_default", "browser", "cache"),  # of gcsfs's token
}
"""Values that are never secret, for any option."""

_MIN_LENGTH, _MIN_EMBEDDED_LENGTH = 3, 6
"""Lengths of secrets in characters.

Strings shorter than `_MIN_LENGTH` are not redacted. Those shorter than `_MIN_EMBEDDED_LENGTH` are
redacted only as whole words.
"""

_MAX_DEPTH, _MAX_VALUES = 6, 2000
"""Limits of the levels and of the values that are searched in options.

Without limits, the search could visit the whole program: an object in options may refer to it.
"""

_MAX_CHARACTERS = 1 << 16
"""Characters of an exception's message that are searched."""

_CREDENTIALS = re.compile(r"\b(Basic|Bearer|Signature|SharedKey)\s+[\w+/=.~:-]{6,}", re.IGNORECASE)
"""Credentials in a header, after the word for their kind."""

_SECRET_FIELD = re.compile(r"((?:Account|SharedAccess)(?:Key|Signature))=[^;\s'\"]+", re.IGNORECASE)
"""A secret field of a connection string of Azure."""

_USER_INFO = re.compile(r"://[^/\s'\"@]+@")
"""The user of a URL, with or without a password."""

_QUERY = re.compile(r"[?#][^\s'\"<>)\]]+=[^\s'\"<>)\]]*")
"""The query or the fragment of a URL, if it has an equals sign."""

_DELIMITERS = re.compile(r"[/@:?#&;,\s]+")
"""Characters at which drivers split URLs, paths and headers."""

_CONNECTION_STRING = re.compile(r"\s*\w+=[^;]*(?:;\s*\w+=[^;]*)+;?\s*")
"""Two or more pairs ``name=value``, separated by semicolons."""


def redact_url(url: str) -> str:
    """Return a URL without user, password, parameters, query and fragment, for messages.

    A user without a password stays if users are public in URLs of this scheme; elsewhere they may
    be access keys. A string that is not a URL is returned unchanged.

    Examples
    --------
    >>> redact_url("s3://KEY:SECRET@bucket/corpus/"), redact_url("sftp://me@host/a")
    ('s3://bucket/corpus', 'sftp://me@host/a')
    >>> redact_url("https://host/corpus?sig=abc"), redact_url("az://box/corpus?sig=abc")
    ('https://host/corpus', 'az://box/corpus?***')
    """
    prefix, scheme, user, address = _split(url)
    if not scheme:
        return url
    location, separator, _ = _split_query(address)
    host, slash, path = location.partition("/")
    if ":" in host and _HOST.fullmatch(host) is None:
        host = MASK
    if user and ":" not in unquote(user) and scheme in _USER_SCHEMES:
        host = f"{user}@{host}"
    # Each part of a path may have parameters, after a semicolon.
    path = "/".join(re.sub(r";.*", f";{MASK}", part) for part in path.split("/"))
    redacted = f"{prefix}{host}{slash}{path}".rstrip("/")
    # Over HTTP, file names are appended to the result, so it must end with the path.
    if separator and scheme not in ("http", "https"):
        redacted += separator + MASK
    return redacted


def _split(url: str) -> tuple[str, str, str, str]:
    """Split a URL into its prefix, scheme, user and address; without a scheme, the prefix is empty.

    The prefix is the scheme with its colon and slashes, such as ``s3://``. The user includes the
    password. The address is the host, the path and the query.

    A password that is not URL-quoted may contain any character, such as a slash. So if the text
    before the first slash has a colon but no port, the user and password end at the last ``@``.
    """
    match = _SCHEME.match(url)
    prefix = "" if match is None else match[0]
    scheme, address = prefix.partition(":")[0].lower(), url[len(prefix) :]
    authority = re.split(r"[/?#]", address, maxsplit=1)[0]
    if "@" in authority:
        user, _, host = authority.rpartition("@")
        return prefix, scheme, user, host + address[len(authority) :]
    has_port = _HOST.fullmatch(authority) is not None and scheme in _PORT_SCHEMES
    if ":" in authority and "@" in address and not has_port:
        user, _, address = address.rpartition("@")
        return prefix, scheme, user, address
    return prefix, scheme, "", address


def _split_query(address: str) -> tuple[str, str, str]:
    """Split the address in a URL into its path, the ``?`` or ``#`` after it, and the remainder."""
    match = re.search(r"[?#]", address)
    if match is None:
        return address, "", ""
    return address[: match.start()], match[0], address[match.end() :]


def location_hash(url: str, options: Mapping[str, Any]) -> str:
    """Return a hash that differs between locations, even if `redact_url` returns the same for both.

    Passwords, access keys and the queries of HTTP URLs do not enter the hash: they may be renewed.

    Parameters
    ----------
    url : str
    options : mapping
        Options of the driver. Endpoint, host, port, account and region enter the hash. They may
        also come from environment variables.

    Examples
    --------
    >>> location_hash("sftp://host/a#1", {}) == location_hash("sftp://host/a#2", {})
    False
    >>> location_hash("https://host/a?sig=1", {}) == location_hash("https://host/a?sig=2", {})
    True
    >>> location_hash("s3://a/b", {}) == location_hash("s3://a/b", {"endpoint_url": "http://minio"})
    False
    """
    from hashlib import blake2b

    prefix, scheme, user, address = _split(url)
    if scheme in ("http", "https"):
        address = _split_query(address)[0]
    if ":" in unquote(user) or scheme not in _USER_SCHEMES:
        user = ""
    variables = _SERVICE_VARIABLES.get(_SCHEME_ALIASES.get(scheme, scheme), {})
    from_environment = {
        option: os.environ[name] for name, option in variables.items() if name in os.environ
    }
    service = sorted(set(_service_items({**from_environment, **options})))
    location = "\0".join((prefix, user, address.rstrip("/"), *service))
    return blake2b(location.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _service_items(options: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    """Yield the options that identify the service, as "name=value"."""
    for name, value in options.items():
        if isinstance(value, Mapping) and depth < _MAX_DEPTH:
            yield from _service_items(value, depth + 1)
        elif isinstance(value, str) and _CONNECTION_STRING.fullmatch(value):
            pairs = (pair.partition("=") for pair in value.split(";"))
            fields = {key.strip(): text for key, _, text in pairs}
            yield from _service_items(fields, _MAX_DEPTH)  # fields are text, so nothing is nested
        elif isinstance(value, str | int) and (field := _SERVICE_OPTIONS.get(str(name).lower())):
            yield f"{field}={str(value).rstrip('/')}"


def url_secrets(url: str) -> Iterator[str]:
    """Yield the parts of a URL that may be secrets, and the pieces a driver may quote alone."""
    prefix, scheme, user, address = _split(url)
    name, colon, password = user.partition(":")
    if not colon:  # the colon may be URL-quoted
        name, colon, password = unquote(user).partition(":")
    if colon:
        yield from (user, password, *_pieces(password))
    if user and (colon or scheme not in _USER_SCHEMES):
        yield name
    path, _, extra = _split_query(address)
    for text in (extra, *(part.partition(";")[2] for part in path.split("/"))):
        yield text
        for pair in re.split(r"[?#&;]", text):
            name, equals, value = pair.partition("=")
            secret = value if equals else name
            yield from (secret, *_pieces(secret))
    host, _, _ = path.partition("/")
    if prefix and ":" in host and _HOST.fullmatch(host) is None:
        yield from (host, host.partition(":")[2])


def secret_strings(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield the strings in a driver's options that may be secrets, also inside objects."""
    budget = [_MAX_VALUES]
    for name, value in options.items():
        yield from _option_secrets(str(name), value, False, True, _MAX_DEPTH, budget)


def _option_secrets(
    name: str, value: Any, is_hidden: bool, from_user: bool, depth: int, budget: list[int]
) -> Iterator[str]:
    """Yield the secrets in an option.

    Search at most `depth` levels and ``budget[0]`` values. `is_hidden` is True inside a secret
    option. `from_user` is True for a value that the user wrote. In an object that the user passed,
    only attributes with a secret name count as secrets.
    """
    budget[0] -= 1
    if depth == 0 or budget[0] < 0:
        return
    is_hidden = is_hidden or (_is_secret(name) and _PUBLIC_NAME.fullmatch(name) is None)
    if isinstance(value, bytes | bytearray):
        value = bytes(value).decode("latin-1")
    if isinstance(value, str):
        yield from _secrets_in_text(name, value, is_hidden, from_user)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _option_secrets(str(key), inner, is_hidden, from_user, depth - 1, budget)
    elif isinstance(value, list | tuple | set | frozenset):
        for inner in value:
            yield from _option_secrets(name, inner, is_hidden, from_user, depth - 1, budget)
    elif isinstance(value, int):
        if is_hidden and not isinstance(value, bool):
            yield str(value)
    elif value is not None and not isinstance(value, type | float):
        for key, inner in _attributes(value):
            # Inside a secret option, numbers and nested objects need a secret name of their own.
            inner_hidden = is_hidden and isinstance(inner, str | bytes)
            yield from _option_secrets(key, inner, inner_hidden, False, depth - 1, budget)


def _attributes(value: object) -> Iterator[tuple[str, Any]]:
    """Yield an object's own attributes, without calling its properties or methods."""
    attributes = getattr(value, "__dict__", None)
    yield from list(attributes.items()) if isinstance(attributes, dict) else ()
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            member = kind.__dict__.get(slot)
            if member is not None:
                try:
                    yield slot, member.__get__(value)
                except AttributeError:
                    continue  # not set


def _secrets_in_text(name: str, text: str, is_hidden: bool, from_user: bool) -> Iterator[str]:
    """Yield the secrets in the text of an option, as `_option_secrets` does.

    For a connection string, yield its secret fields and the whole text. A public option may
    contain a URL with secrets. Any other option is secret as a whole, if `is_hidden` or `from_user`
    is True.
    """
    if text.lower() in _PUBLIC_VALUES:
        return
    if _CONNECTION_STRING.fullmatch(text):  # for example Azure's
        for pair in text.split(";"):
            key, _, value = pair.partition("=")
            if _is_secret(key):
                yield from (value, *_pieces(value))
            else:
                yield from url_secrets(value)
        yield text
    elif not is_hidden and _PUBLIC_NAME.fullmatch(name):
        yield from url_secrets(text)
    elif is_hidden:
        yield from (text, *_pieces(text))
    elif from_user:
        yield from (text, *url_secrets(text))


def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def _pieces(secret: str) -> list[str]:
    """Return the parts of a secret that a message may quote alone.

    A driver may take a part for a bucket, a path or a line of a header.
    """
    return [piece for piece in _DELIMITERS.split(secret) if len(piece) >= _MIN_EMBEDDED_LENGTH]


def _environment_secrets() -> Iterator[str]:
    """Yield secrets from environment variables, which drivers read as well."""
    for name, value in os.environ.items():
        if "://" in value and "@" in value:
            yield from url_secrets(value)  # such as a proxy's URL
        # The path of an existing file is not a secret. Redacting short values, such as "true" or
        # "1", would damage other words of messages.
        if _is_secret(name) and len(value) >= 8 and not os.path.lexists(value):
            yield from _secrets_in_text(name, value, True, True)


def redact(text: str, secrets: Iterable[str]) -> str:
    """Return a message without secrets and credentials, and without queries of URLs.

    Examples
    --------
    >>> redact("invalid bucket 'me:word-of@b' of https://h/a?sig=1", ["word-of"])
    "invalid bucket 'me:***@b' of https://h/a"
    """
    variants = {variant for secret in secrets for variant in _variants(secret)}
    for length, pattern in (
        (_MIN_EMBEDDED_LENGTH, "(?:{})"),
        (_MIN_LENGTH, "(?<![A-Za-z0-9])(?:{})(?![A-Za-z0-9])"),
    ):
        selected = sorted((v for v in variants if len(v) >= length), key=len, reverse=True)
        variants.difference_update(selected)
        if selected:
            # Ignore case: a driver that takes a secret for a host shows it in lower case.
            matches = pattern.format("|".join(map(re.escape, selected)))
            text = re.sub(matches, MASK, text, flags=re.IGNORECASE)
    text = _CREDENTIALS.sub(rf"\1 {MASK}", _USER_INFO.sub("://", text))
    return _QUERY.sub("", _SECRET_FIELD.sub(rf"\1={MASK}", text))


def _variants(secret: str) -> Iterator[str]:
    """Yield the spellings that a secret may have in a message, such as a URL-quoted one."""
    if not secret.strip(" ."):  # would match spaces and periods of the message
        return
    lines = [line.strip() for line in secret.splitlines()]
    for text in (secret, unquote(secret), unquote_plus(secret), *lines):
        yield from (text, " ".join(text.split()), repr(text)[1:-1], json.dumps(text)[1:-1])
        yield from (quote(text), quote(text, safe=""), quote_plus(text))


class Redactor:
    """Removes secrets from text, when called: those in a URL, in options and in the environment.

    Parameters
    ----------
    url : str
    options : mapping of str to object
        Options of the driver. They are searched at each call, because drivers renew credentials.
    """

    __slots__ = ("_options", "_url")

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._url = url
        self._options = options

    def __call__(self, text: str) -> str:
        """Return a message without secrets."""
        secrets = [*url_secrets(self._url), *secret_strings(self._options)]
        return redact(text, [*secrets, *_environment_secrets()])

    def describe(self, error: BaseException, max_length: int = 300) -> str:
        """Return an exception's type and message in one line, without secrets.

        The message is cut to `max_length` characters.
        """
        # Redact before truncating, or half a secret could remain.
        message = " ".join(self(str(error)[:_MAX_CHARACTERS]).split())
        if not message:
            return type(error).__name__
        return f"{type(error).__name__}: {message[:max_length]}"

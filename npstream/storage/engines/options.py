"""Translation of a driver's options to those of obstore.

Each driver has a table of options. An option that is not in the table is never ignored: it raises
`UnsupportedOptionError`, and the driver reads the store instead of obstore.

Tested in tests/storage/engines/test_s3.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["NO_TIMEOUT", "OptionTable", "Target", "UnsupportedOptionError", "proxy_variable"]


NO_TIMEOUT = "365days"
"""obstore's notation for no timeout: npstream cancels requests at their deadlines."""


class UnsupportedOptionError(Exception):
    """An option, an environment variable or a URL that obstore does not support.

    Parameters
    ----------
    name : str
        The name of the option, or a text that says what is not supported. It contains no secret.
    """


@dataclass(frozen=True, slots=True)
class Target:
    """A bucket or container as obstore reaches it.

    Attributes
    ----------
    store : str
        The name of obstore's class.
    container : str
        The name of the bucket or container.
    config : dict
        The configuration of the store. It always has the settings for which obstore would
        otherwise read environment variables that the driver ignores.
    client : dict
        The options of the HTTP client.
    make_credentials : callable, optional
        Returns obstore's credential provider, or None for requests without a signature. It may
        block, because it may request credentials.
    """

    store: str
    container: str
    config: dict[str, Any] = field(repr=False)
    client: dict[str, Any] = field(repr=False)
    make_credentials: Callable[[], Any] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class OptionTable:
    """The options of a driver that obstore supports.

    Attributes
    ----------
    settings : mapping of str to str
        For each option, the name of the setting that it sets.
    harmless : frozenset of str
        Options that do not affect how a file is read.
    """

    settings: Mapping[str, str]
    harmless: frozenset[str] = frozenset()

    def translate(self, options: Mapping[str, Any], where: str = "") -> dict[str, Any]:
        """Return the settings; raise UnsupportedOptionError for an option outside the table.

        An option whose value is None, False, "" or an empty mapping has no effect.

        Parameters
        ----------
        options : mapping
        where : str
            The option that contains these options, for messages.

        Examples
        --------
        >>> table = OptionTable({"key": "access_key"}, frozenset({"block_size"}))
        >>> table.translate({"key": "k", "block_size": 9, "session": None})
        {'access_key': 'k'}
        >>> table.translate({"session": 1})
        Traceback (most recent call last):
        npstream.storage.engines.options.UnsupportedOptionError: session
        """
        settings: dict[str, Any] = {}
        for name, value in options.items():
            if name in self.settings:
                if value is not None:
                    settings[self.settings[name]] = value
            elif name not in self.harmless and not _has_no_effect(value):
                raise UnsupportedOptionError(f"{where}{name}")
        return settings


def _has_no_effect(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, str | Mapping) and not value)


def proxy_variable(environment: Mapping[str, str]) -> str | None:
    """Return the name of the environment variable that sets a proxy, or None.

    Drivers and obstore do not treat all forms of these variables alike. So the driver reads the
    store if one is set.
    """
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            if environment.get(variable):
                return variable
    return None

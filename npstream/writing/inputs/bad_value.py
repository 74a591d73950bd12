"""Provide `BadValue`, which a source yields in place of a value that it cannot read.

Tested in tests/conversion/file_samples/test_webdataset.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["BadValue", "bad_value_in"]


@dataclass(frozen=True, slots=True)
class BadValue:
    """A value that no column stores: its sample is refused, or left out with ``on_error="skip"``.

    Attributes
    ----------
    reason : str
        Where the value comes from, what is wrong with it, and how to fix it.
    """

    reason: str


def bad_value_in(sample: Mapping[str, Any]) -> BadValue | None:
    """Return the first bad value of a sample; None if all values are good."""
    return next((value for value in sample.values() if type(value) is BadValue), None)

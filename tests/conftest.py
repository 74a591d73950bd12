"""Settings that all tests share."""

from __future__ import annotations

import hypothesis

# The same examples at every run; `--hypothesis-profile=search` looks for new ones.
hypothesis.settings.register_profile(
    "repeat", deadline=None, derandomize=True, database=None, print_blob=True
)
hypothesis.settings.register_profile("search", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("repeat")

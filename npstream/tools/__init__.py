"""Tools for whole datasets (add columns, copy, merge, verify, side-car), self-test and demo."""

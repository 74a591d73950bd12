"""Costs of an epoch, which are estimated before any sample is read."""

"""Engines that read from object stores faster than fsspec's drivers."""

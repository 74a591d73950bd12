"""The cache of remote shards on a local disk, which all processes of a user share."""

from npstream.cache.cache import CacheInfo, clear, info

__all__ = ["CacheInfo", "clear", "info"]

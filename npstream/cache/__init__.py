"""The cache: parts of remote shards on a local disk, shared by every process of this user."""

from npstream.cache.cache import CacheInfo, clear, info

__all__ = ["CacheInfo", "clear", "info"]

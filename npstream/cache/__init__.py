"""The cache: parts of remote shards on a local disk, shared by every process of this user."""

from npstream.cache.cache import Cache, CacheInfo, clear, info

__all__ = ["Cache", "CacheInfo", "clear", "info"]

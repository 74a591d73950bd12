"""Shards in memory: local, remote, several datasets' as one."""

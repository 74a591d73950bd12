"""What a read or an epoch costs, before it is read."""

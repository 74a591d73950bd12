"""From sample numbers to arrays: plan, gather, decode."""

"""Ours and the peers on the same problems: each a process of its own in its own environment."""

"""Pruning: removing weights one by one, or whole heads, channels and residual dimensions."""

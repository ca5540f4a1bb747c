"""Checkpoints for zoo; everything is in registry.toml."""

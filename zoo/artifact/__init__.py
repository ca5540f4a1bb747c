"""Artifacts: a directory that holds a model exactly."""

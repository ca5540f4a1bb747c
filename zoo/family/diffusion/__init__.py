"""Pipelines that draw."""

"""Measuring: figures of models, shares with their intervals."""

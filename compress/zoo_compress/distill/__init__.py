"""Distillation: losses apart from loops."""

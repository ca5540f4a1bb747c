"""Calibration: what a little data does inside a model, and whether a changed model still runs."""

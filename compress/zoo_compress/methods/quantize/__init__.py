"""Quantisation: packed modules and the compressors that put them in place."""

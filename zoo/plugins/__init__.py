"""Plugins: which are installed, what they declare, which are switched off, and the objects behind their names."""

"""How weights are stored packed and run packed: one file a format."""

"""Numbers and bytes without a model: batches, finite values, alignment, safetensors files."""

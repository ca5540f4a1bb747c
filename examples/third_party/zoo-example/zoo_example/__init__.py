"""An example plugin for zoo: a model, a compressor, a loss, an evaluator, a data source and a command."""

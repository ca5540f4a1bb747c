"""From a recipe to a result: read, planned, run, made again."""

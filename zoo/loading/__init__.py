"""`zoo.load`: from a name or a path to a model that runs."""

"""What can be done to a model: one file or folder a technique, each a stage with options of its own."""

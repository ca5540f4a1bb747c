"""`zoo plugins`: the life of a plugin, from its project to its removal."""

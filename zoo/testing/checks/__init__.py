"""What the contract tests ask, one file a kind of thing that a plugin adds."""

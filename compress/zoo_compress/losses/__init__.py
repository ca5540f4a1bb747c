"""The losses of training and distilling, one file for those on rows and one for those on the outputs of blocks."""

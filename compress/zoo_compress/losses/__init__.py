"""The losses of training and distilling, a file each for those on rows, on vectors of whole samples, and on the outputs of blocks."""

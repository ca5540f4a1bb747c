"""An example plugin for zoo: pruning by Wanda, on a walk through the model block by block."""

"""An example plugin for zoo: 4 bits by GPTQ, on a walk through the model block by block."""

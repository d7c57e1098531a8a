"""Quantization of weights: schemes, levels, GPTQ, and the checkpoint that they are written into."""

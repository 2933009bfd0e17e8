"""W4A16: 4-bit group-wise weights times fp16 or bf16 activations, one packing for every M."""

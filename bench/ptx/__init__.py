"""Running compiled Triton kernels without a GPU: launches in an interpreter of their PTX."""

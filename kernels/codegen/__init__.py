"""Compiling kernels ahead of time, without a GPU, and counting what they became."""

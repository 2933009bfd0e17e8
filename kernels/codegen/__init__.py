"""Compiling kernels ahead of time, without a GPU, counting what they became, and running it."""

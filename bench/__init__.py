"""Measuring: tokens per second, memory bandwidth, comparison with peers."""

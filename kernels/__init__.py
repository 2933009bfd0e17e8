"""Kernels: one op a file, and ``reference.py``, the plain-torch meaning of every op.

This package imports nothing else of Halfbyte.
"""

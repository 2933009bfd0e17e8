"""Quantized models as files that other engines load, too."""

"""Weights [N, K] in the type of the activations, multiplied by torch."""

"""What a model would need and take, from headers alone, and what is wrong with a machine."""

"""Training through fake-quantized weights, and adapters over quantized ones."""

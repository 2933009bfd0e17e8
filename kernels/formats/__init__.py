"""What numbers mean: weight formats, canonical weights, bit streams, code tables, rounding."""

"""Side-by-side measurements with other engines; one script for each."""

"""``bench kernels``: time of every kernel against its physical floor and against its peers."""

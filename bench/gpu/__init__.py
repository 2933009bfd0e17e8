"""The parts of :mod:`halfbyte.bench.gpu_suite`: what one run on a GPU machine finds out."""

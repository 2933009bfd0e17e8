"""Thin layers over ``Ops``: what a decoder is made of, with no arithmetic of their own."""

"""CPU kernels in C: built by the system's compiler at first use, called through ctypes.

``build`` compiles and caches, ``library`` loads and runs, ``pack`` lays weights out. Without a
compiler the engine runs on torch's own kernels instead.
"""

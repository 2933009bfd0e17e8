"""CPU kernels in C: built by the system's compiler at first use, called through ctypes.

``forms`` says which instructions may be used, ``build`` compiles and caches, ``library`` loads and
runs; ``kinds`` chooses how a weight is kept and ``pack`` fills it, in memory of ``arena``; ``ops``
lists the operations and ``records`` packs them for C. Without a
compiler the engine runs on torch's own kernels instead.
"""

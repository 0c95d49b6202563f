"""The CUDA backend: the vocabulary of its kernels, compiling them to cubins, and the cubins' files.

Importing it loads neither numba nor a driver; device_ops, the vocabulary, is for the process
that compiles.
"""

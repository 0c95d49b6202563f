"""Read, decode and encode the GGUF file format: a leaf library over numpy.

Modules: `formats` (block layouts and sizes), `reader` (one file), `split` (files in parts),
`dequantize` and `quantize` (rows of bytes <-> float32).
Nothing is imported here, so that a command pays only for the module it names.
"""

"""Making compiled kernels for every backend: their names, their files, the processes that compile them."""

"""Runs the CUDA kernels and their bindings on the CPU, for tests on machines without a GPU."""

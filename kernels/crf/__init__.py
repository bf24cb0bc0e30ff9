"""Triton kernels of the dense CRF."""

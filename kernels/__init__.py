"""Triton kernels, one file an op; none of them is imported before its op first runs on a GPU."""

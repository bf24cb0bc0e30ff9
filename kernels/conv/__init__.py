"""Triton kernels of atrous convolution."""

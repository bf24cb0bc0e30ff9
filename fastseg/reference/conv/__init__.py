"""Atrous convolution in plain PyTorch."""

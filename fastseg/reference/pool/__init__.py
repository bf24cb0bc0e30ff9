"""Pooling and unpooling in plain PyTorch."""

"""Refinement of masks by an image in plain PyTorch."""

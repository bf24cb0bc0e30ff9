"""The dense CRF and its filters in plain PyTorch."""

"""What follows the logits, in plain PyTorch."""

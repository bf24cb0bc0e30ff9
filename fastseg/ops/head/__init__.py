"""What follows the logits: losses, metrics, and what they are made of."""

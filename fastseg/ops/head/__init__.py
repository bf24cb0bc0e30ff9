"""What follows the logits: label maps and their scores."""

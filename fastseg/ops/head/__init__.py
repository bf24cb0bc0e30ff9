"""What follows the logits, without logits of full size: class maps, losses, confusion matrices."""

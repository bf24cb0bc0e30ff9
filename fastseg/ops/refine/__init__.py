"""Refinement of masks by an image."""

"""Imports that other people's scripts have: pydensecrf's, and fastseg's own of earlier versions."""

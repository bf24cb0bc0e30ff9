"""The imports of other people's scripts: pydensecrf's, and fastseg's own of earlier versions."""

"""The imports of other people's scripts, and fastseg's own of earlier versions.

pydensecrf's are in ``pydensecrf``, those of rloss's SWIG module in ``bilateralfilter``.
"""

"""Patterns of nodes in a graph, and the one call that each becomes.

- ``chains.py``: a convolution, its batch norm, an added residual and an activation; batch norm,
  ReLU and max-pooling.
- ``aspp.py``: convolutions of one input at several rates, concatenated and projected.
- ``module_pooling.py``, ``function_pooling.py``: pooling and unpooling, as modules of the whole
  model and as functions that one forward calls; ``indices.py`` is what both need.
"""

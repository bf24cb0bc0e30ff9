"""Patterns of nodes in a graph, and the one call that each becomes.

- ``chains.py``: a convolution, its batch norm, an added residual and an activation; batch norm,
  ReLU and max-pooling.
- ``aspp.py``: convolutions of one input at several rates, concatenated and projected.
- ``heads.py``: upsampled logits, of which the classes or the loss alone are wanted by what
  ``readers.py`` tells of; ``mentions.py`` tells where to look for them.
- ``module_pooling.py``, ``function_pooling.py``: pooling and unpooling, as modules of the whole
  model and as functions that one forward calls; ``indices.py`` is what both need.
"""

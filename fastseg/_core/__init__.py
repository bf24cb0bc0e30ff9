"""The ground floor: what all families of ops share. Nothing in here imports what stands on it.

- ``startup``: what Ctrl-C does while the rest is imported; ``version``.
- ``extension``: loads the compiled libraries; ``library``: defines ops, with ``autograd``, ``vmap``
  and ``autocast``.
- ``conv2d``, ``pool2d``, ``winograd``, ``permutohedral``, ``pairwise``, ``lattice_quality``,
  ``formulas``: geometry and formulas that ops, fakes, references and kernels agree on.
- ``tensor_checks``, ``readable``, ``ordinary_tensors``, ``float32_precision``: questions to tensors
  and to torch's settings.
- ``atomic``: files that are written wholly or not at all; ``when_imported``.
"""

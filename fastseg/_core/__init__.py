"""The ground floor, which all families of ops share. It imports nothing that stands on it.

- ``startup`` handles Ctrl-C while the rest is imported; ``version`` holds the version.
- ``extension`` loads the compiled libraries, if they fit what ``nvml`` tells of the GPUs.
- ``library`` defines ops, with ``autograd``, ``vmap`` and ``autocast``.
- ``window``, ``conv2d``, ``pool2d``, ``winograd``, ``permutohedral``, ``pairwise``,
  ``lattice_quality`` and ``formulas`` hold the geometry and the formulas on which ops, fakes,
  references and kernels agree.
- ``conv2d_checks``, ``tensor_checks``, ``readable``, ``ordinary_tensors`` and ``remember`` check
  arguments; ``float32_precision`` reads torch's settings.
- ``atomic`` writes files wholly or not at all; ``when_imported`` waits for a module.
"""

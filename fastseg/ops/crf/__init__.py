"""The dense CRF: mean field, and the Gaussian filters that it is made of.

- ``dense_crf``: the public function and ``MeanField``; ``problem`` checks what they are given and
  ``model`` holds it.
- ``mean_field``: the differentiable op, whose Gaussians are ``gaussians`` and whose states are
  ``checkpoints``; ``lattice_mean_field``: the same in one kernel, without gradients; ``vmap``.
- ``permutohedral_lattice``, ``permutohedral_filter``, ``exact_gaussian_filter``,
  ``spatial_gaussian_filter``: the filters.
"""

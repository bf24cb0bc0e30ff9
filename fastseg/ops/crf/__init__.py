"""The dense CRF: mean field, and the Gaussian filters that it is made of.

- ``dense_crf`` has the public function and ``MeanField``. ``problem`` turns their arguments into
  the op's and, with ``checks``, checks them.
- ``unary`` makes energies of logits, probabilities and labels; ``pictures`` tensors of images.
- ``mean_field`` is the differentiable op. Its updates are in ``model``, its filters in ``filters``;
  its gradient keeps states by ``checkpoints``. ``lattice_mean_field`` is the same in one kernel,
  without gradients. ``vmap`` has the rule of both.
- ``dense_energy`` is the loss of weakly supervised segmentation; ``bilateral_filter``, of which it
  is made, filters images once, each on a lattice that is not kept.
- ``permutohedral_lattice``, ``permutohedral_filter``, ``exact_gaussian_filter`` and
  ``spatial_gaussian_filter`` are the ops of the filters.
"""

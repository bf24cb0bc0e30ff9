"""Atrous convolution: dense, depthwise, separable, and a whole ASPP; their gradients.

- ``atrous_conv2d``, ``separable_atrous_conv2d``, ``aspp`` (with ``aspp_branch``): the public ops;
  ``atrous_conv2d_grad``: the gradients of the first as ops.
- ``depthwise_conv2d``, ``winograd_conv2d``, ``im2col_conv2d``, ``dense_conv2d_weight_grad``,
  ``image_layout``: ops of one kernel each, of which the others are made on the CPU.
- ``cpu_plan``, ``cpu_grad``, ``cpu_aspp``, ``cpu_pointwise``: which kernel the CPU takes, by the
  measured ``cpu_costs``; ``prepared_weights``: weights as kernels want them, kept.
- ``flops``: what FlopCounterMode counts.
"""

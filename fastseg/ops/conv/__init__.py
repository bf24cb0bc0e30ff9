"""Atrous convolution: dense, depthwise, separable, and a whole ASPP, with their gradients.

- ``atrous_conv2d``, ``separable_atrous_conv2d`` and ``aspp`` (with ``aspp_branch`` and
  ``aspp_projection``) are the public ops. ``atrous_conv2d_backward`` and ``atrous_conv2d_grad``
  hold the gradients.
- ``depthwise_conv2d``, ``winograd_conv2d``, ``im2col_conv2d``, ``im2col_conv2d_grads``,
  ``dense_conv2d_weight_grad`` and ``image_layout`` are ops of one kernel each, of which the CPU
  makes the others.
- ``cpu_plan``, ``cpu_grad``, ``cpu_aspp`` and ``cpu_pointwise`` choose the CPU's kernel by the
  measured ``cpu_costs``. ``cpu_kernels`` and ``cpu_onednn`` call it. ``prepared_weights`` keeps
  weights in a kernel's form.
- ``flops`` counts operations for torch's FlopCounterMode, on request without padding
  (``live_taps``).
"""

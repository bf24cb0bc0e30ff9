"""Triton kernels of atrous convolution, and what launches them.

What the ops call:

- `atrous_conv2d`: dense convolution and the gradient of its input.
- `weight_grad`: the gradient of a dense convolution's weight, its kernels among it.
- `depthwise_conv2d`: depthwise convolution and both of its gradients.
- `aspp`: atrous spatial pyramid pooling, and the kernel of its projection.

Kernels:

- `forward`: dense convolution over live taps, and the sum of split tiles.
- `forward_wide`, `loads`: the same with its widest block; how both read pixels and weights.
- `tap_products`: dense convolution with few outputs, as one product for all taps and their shifts.
- `depthwise_forward`, `depthwise_weight_grad`: depthwise convolution, one kernel for each layout.
- `image_pooling`, `aspp_projection`: the pooled branch of an ASPP; what follows its branches.
- `epilogue`: bias, batch norm, residual and activation, within a kernel or after torch's.
- `arguments`: the groups of parameters that kernels take.

What a launch is planned with:

- `geometry`: sizes of the maps, branches, live taps along an axis.
- `configs`: the table of block shapes, of all kernels that multiply matrices.
- `rates`: what a GPU can do: estimates, and a place for what is measured.
- `cost`, `makespan`: the model of the time that programs take on a GPU, and of cuDNN's.
- `choice`: which form computes a convolution, torch's included, by that model.
- `tiles`, `cuts`, `plan`: which program of `forward` takes which pixels, taps and channels.
- `weight_grad_plan`: which program of `weight_grad` sums which pixels of which tap.
- `plan_cache`: the plans of both, kept on the device.
- `depthwise_tiles`: how depthwise convolutions are cut into programs.
- `launch`: one launch of `forward`, from the estimate of block shapes to the kernels.
- `few_outputs`: one launch of `tap_products`, in the same way.
- `recording`, `prepared_call`: what a call launches, for the next calls of its kind.
- `layouts`: memory layouts and alignment.
- `torch_conv2d`: torch's own gradients, where these kernels gain nothing.
"""

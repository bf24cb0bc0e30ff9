"""Triton kernels, one folder a family; none is imported before its op first runs on a GPU.

- :mod:`fastseg.kernels.common`: the GPU that a launch is planned for, the precision of products.
- :mod:`fastseg.kernels.conv`: atrous convolution, depthwise convolution, their gradients, ASPP.
- :mod:`fastseg.kernels.crf`: the exact Gaussian filter of the dense CRF.
"""

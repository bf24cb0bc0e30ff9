"""Winograd."""
from fastseg.ops._library import LIBRARY
LIBRARY.define("winograd_conv2d(Tensor x, Tensor weight, int out_channels, Tensor? bias, Tensor? scale, Tensor? shift, Tensor? residual, int[2] dilation, bool fast, str activation) -> Tensor")
LIBRARY.define("winograd_conv2d_weight(Tensor weight, int[2] size, int[2] dilation, bool fast, bool adjoint) -> Tensor")

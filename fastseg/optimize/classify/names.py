"""Names of functions, methods and attributes, by what is known of them."""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


FRESH = _names(
    """
    abs adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d add addmm amax amin and_
    argmax argmin avg_pool2d baddbmm bilinear bmm cat ceil celu clamp clamp_max clamp_min clip
    clone concat concatenate conv1d conv2d conv3d conv_transpose2d cos cumsum div elu eq erf
    exp floor floordiv ge gelu glu grid_sample group_norm gt hardshrink hardsigmoid hardswish
    hardtanh instance_norm interpolate inv invert layer_norm le leaky_relu linear linspace log
    log_softmax logical_and logical_not logical_or logsigmoid logsumexp lt masked_fill matmul
    max_pool2d maximum mean minimum mish mm mod mul ne neg normalize not_ ones_like or_ outer
    pow prelu reciprocal relu relu6 repeat rms_norm round rsqrt scaled_dot_product_attention
    selu sigmoid sign silu sin softmax softmin softplus softshrink softsign sqrt square stack
    std sub sum tanh tanhshrink threshold tril triu truediv upsample var xor zeros_like
    """
)
"""Functions and methods of torch, and operators, that return one new tensor of tensors."""

MAYBE_VIEWS = _names(
    """
    H T bfloat16 contiguous cpu cuda data detach double dropout dropout1d dropout2d dropout3d
    einsum expand expand_as flatten float half mH mT movedim narrow pad permute pixel_shuffle
    pixel_unshuffle real reshape reshape_as roll select squeeze swapaxes t to transpose
    type_as unflatten unfold unsqueeze view view_as
    """
)
"""Functions, methods and attributes that return one tensor, perhaps a view or what was given."""

WRITES = _names(
    """
    backward delitem resize retain_grad set setitem
    """
)
"""Functions and methods that write to a tensor or a list and whose names do not end with "_"."""

IN_PLACE_OPERATORS = _names(
    """
    iadd iand ifloordiv ilshift imatmul imod imul ior ipow irshift isub itruediv ixor
    """
)
"""Functions of Python's operator module that write to what they are given first."""

NEVER_NONE = _names(
    """
    H T data device dtype imag is_cpu is_cuda is_leaf is_meta is_mps is_quantized is_sparse
    is_xpu itemsize layout mH mT nbytes ndim real requires_grad shape
    """
)
"""Attributes of tensors that have a value always and are no methods."""

BUILTINS = _names(
    """
    __build_class__ abs all any chr divmod format getattr hasattr isinstance issubclass iter
    len max min next ord pow repr round sorted sum
    """
)
"""Builtin functions that change nothing and say of stand-ins what they say of tensors."""

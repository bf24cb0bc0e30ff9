"""Triton kernels of the dense CRF, and what launches them.

- `exact_gaussian_filter`: the filter and its gradient, as the ops call them.
- `exact_gaussian_filter_kernels`: the kernels that sum over keys.
- `exact_gaussian_filter_operands`: the rows that they multiply.
- `exact_gaussian_filter_blocks`: points sorted into blocks, and which blocks are near which.
"""

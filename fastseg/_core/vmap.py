"""Rules for ops under torch.vmap: slice by slice, or all at once where that is possible.

A rule is a function for torch.library.register_vmap that also gets the op and all its arguments:
``rule(op, info, in_dims, *arguments)`` returns the outputs and the position of vmap's dimension in
each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

Rule = Callable[..., tuple[Any, Any]]
"""A function of the op, vmap's info, the arguments' dimensions and the arguments."""


def by_slices(op: torch._ops.OpOverload, info: Any, in_dims: Sequence, *arguments) -> Any:
    """Calls the op for each slice: a rule for every op whose outputs have one size."""
    slices = [op(*slice_of(arguments, in_dims, i)) for i in range(info.batch_size)]
    if not slices:  # the outputs have the sizes of those for a slice of zeros
        empty = _stacked([op(*slice_of(arguments, in_dims, None))])
        return tree_map(lambda t: t[:0], empty), tree_map(lambda t: 0, empty)
    outputs = _stacked(slices)
    return outputs, tree_map(lambda t: 0, outputs)


def slice_of(value: Any, dim: Any, i: int | None) -> Any:
    """Returns slice i of a tensor along dim, or of all tensors in a list; for i None zeros."""
    if isinstance(value, (list, tuple)):
        return [slice_of(v, d, i) for v, d in zip(value, dim, strict=True)]
    if dim is None:
        return value
    if i is None:
        return value.new_zeros((*value.shape[:dim], *value.shape[dim + 1 :]))
    return value.select(dim, i)


def _stacked(slices: Sequence[Any]) -> Any:
    """Stacks the outputs of several calls along a new first dimension."""
    if isinstance(slices[0], Tensor):
        return torch.stack(slices)
    return type(slices[0])(torch.stack(parts) for parts in zip(*slices, strict=True))


def by_batch(*batched: int) -> Rule:
    """Returns the rule for ops with one output (N, ...): vmap's dimension becomes part of N.

    Where another argument has vmap's dimension the rule is :func:`by_slices`.

    Args:
        batched: the positions of the arguments (N, ...). All but the first may be None.
    """

    def rule(op, info, in_dims, *arguments):
        others = [d for i, d in enumerate(in_dims) if i not in batched]
        if any(d is not None for d in tree_leaves(others)):
            return by_slices(op, info, in_dims, *arguments)
        folded = list(arguments)
        for i in batched:
            if folded[i] is not None:
                front = in_front(info.batch_size, in_dims[i], folded[i])
                folded[i] = front.flatten(0, 1)
        return op(*folded).unflatten(0, front.shape[:2]), 0

    return rule


def in_front(batch_size: int, dim: int | None, t: Tensor) -> Tensor:
    """Returns t with vmap's dimension first, to which it is expanded if it has none."""
    return t.expand(batch_size, *t.shape) if dim is None else t.movedim(dim, 0)


def fold_planes(
    batch_size: int, in_dims: Sequence[int | None], tensors: Sequence[Tensor]
) -> tuple[list[Tensor], Callable[[Tensor], Tensor]]:
    """Makes vmap's dimension part of N, whose images a pooling treats alike.

    Args:
        batch_size: the size of vmap's dimension.
        in_dims: the position of vmap's dimension in each tensor, or None if it has none.
        tensors: (N, C, H, W) or (C, H, W) without vmap's dimension.

    Returns:
        The tensors with vmap's dimension folded into N, and the function that unfolds an output,
        vmap's dimension first.
    """
    front = [in_front(batch_size, d, t) for t, d in zip(tensors, in_dims, strict=True)]
    if front[0].dim() == 4:  # each is (C, H, W), so that vmap's dimension is N itself
        return front, lambda out: out
    n = front[0].shape[1]
    return [t.flatten(0, 1) for t in front], lambda out: out.unflatten(0, (batch_size, n))


def by_planes(count: int) -> Rule:
    """Returns the rule of poolings: vmap's dimension becomes part of N, see :func:`fold_planes`.

    Args:
        count: number of tensors, which are the op's first arguments.
    """

    def rule(op, info, in_dims, *arguments):
        planes, unfold = fold_planes(info.batch_size, in_dims[:count], arguments[:count])
        outputs = op(*planes, *arguments[count:])
        return tree_map(unfold, outputs), tree_map(lambda t: 0, outputs)

    return rule

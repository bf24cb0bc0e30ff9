"""Two processes with half of a batch each compute OHEM, and one of them the same by itself.

A program for ``python -m torch.distributed.run --nproc-per-node 2``.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from fastseg.ops import upsample_ohem_cross_entropy
from fastseg.train import losses
from fastseg.train.processes import end, join, leave

IGNORE = 255
CASES = {"few are hard": (30, 3.0), "many are hard": (30, 0.1), "all are kept": (10**6, 1.0)}
"""Least number of pixels a picture, and scale of the logits."""


def batch(scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 6, 7, generator=generator) * scale
    logits[2:] += 5 * scale * torch.eye(3)[0].view(1, 3, 1, 1)  # the other process's are easier
    target = torch.randint(0, 3, (4, 12, 14), generator=generator)
    target[2:] *= torch.rand(2, 12, 14, generator=generator) < 0.2
    target[:, :2] = IGNORE
    return logits, target


def share(logits, target, part):
    """This process's loss and gradient, as DistributedDataParallel has them before it averages."""
    own = logits[part].clone().requires_grad_()
    loss = losses.Loss("ohem", torch.tensor([1.0, 2.0, 0.5]), IGNORE)
    loss.measure(target[part])
    value = loss(own, target[part])
    value.backward()
    return value.detach(), own.grad


def main() -> int:
    join(torch.device("cpu"))
    rank = dist.get_rank()
    for least, scale in CASES.values():
        losses.LEAST_KEPT = least
        logits, target = batch(scale)
        for ignored in (False, True):
            if ignored:  # a process without a pixel that counts
                target[2:] = IGNORE
            part = slice(2 * rank, 2 * rank + 2)
            value, gradient = share(logits, target, part)
            dist.all_reduce(value)
            whole = logits.clone().requires_grad_()
            expected = upsample_ohem_cross_entropy(
                whole,
                target,
                min_kept=least,
                weight=torch.tensor([1.0, 2.0, 0.5]),
                ignore_index=IGNORE,
            )
            expected.backward()
            torch.testing.assert_close(value / 2, expected.detach())
            torch.testing.assert_close(gradient / 2, whole.grad[part])
    leave()
    return 0


if __name__ == "__main__":
    end(main())

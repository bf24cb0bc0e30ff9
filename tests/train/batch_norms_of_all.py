"""Two processes with half of a batch each train networks as one process with the batch does.

A program for ``python -m torch.distributed.run --nproc-per-node 2``.
"""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from fastseg.models import main_logits
from fastseg.train.processes import end, join, leave, synchronise_batch_norms
from tests.models.small_models import SMALL, build


class BatchNormAct(nn.BatchNorm2d):
    """Batch norm and an activation in one module, as other projects have it."""

    def forward(self, x):
        self.num_batches_tracked.add_(1)
        statistics = self.running_mean, self.running_var
        y = F.batch_norm(x, *statistics, self.weight, self.bias, self.training, 0.1, self.eps)
        return F.silu(y)


def networks():
    """Each network, and batch norms of other kinds."""
    for name in SMALL:
        yield build(name), randn(4, 3, 48, 40)
    yield build("segnet_basic", backend="torch"), randn(4, 3, 48, 40)
    yield nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct(4), nn.Conv2d(4, 2, 1)), randn(4, 3, 9, 8)
    average = nn.BatchNorm2d(4, momentum=None, affine=False)
    yield nn.Sequential(nn.Conv2d(3, 4, 3), average), randn(4, 3, 9, 8)
    yield nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, track_running_stats=False)), randn(4, 5)


def randn(*size: int) -> torch.Tensor:
    return torch.randn(size)


def trained(model, x, weight):
    """The scores of a model and the gradients of its parameters."""
    scores = main_logits(model(x))
    (scores * weight).sum().backward()
    return scores.detach(), [p.grad for p in model.parameters() if p.grad is not None]


def main() -> int:
    join(torch.device("cpu"))
    part = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    for whole, images in networks():
        whole.double().train()
        for module in whole.modules():
            if isinstance(module, nn.Dropout | nn.Dropout2d):
                module.p = 0.0
        shared, images = copy.deepcopy(whole), images.double()
        synchronise_batch_norms(shared)
        weight = torch.randn_like(main_logits(copy.deepcopy(whole)(images)))
        expected, expected_gradients = trained(whole, images, weight)
        found, gradients = trained(shared, images[part], weight[part])
        torch.testing.assert_close(found, expected[part], rtol=1e-6, atol=1e-6)
        for gradient in gradients:
            dist.all_reduce(gradient)
        torch.testing.assert_close(gradients, expected_gradients, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(shared.state_dict(), whole.state_dict())
        for model in (whole, shared):
            model.eval()
        with torch.no_grad():
            ours, theirs = (main_logits(m(images[:2])) for m in (shared, whole))
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    leave()
    return 0


if __name__ == "__main__":
    end(main())

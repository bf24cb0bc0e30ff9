"""Trains a small network and a dense CRF layer end to end (CRF as RNN).

    python examples/train_crf_layer.py --steps 60

The pictures are made here: a bright disc on a dark ground, under noise. The network sees a pixel
and its neighbours; the CRF lets near pixels of like colour agree. The loss takes log Q, which has a
gradient also where the network is wrong with confidence.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastseg


class NetworkWithCRF(nn.Module):
    """A small network whose logits a dense CRF refines.

    Args:
        num_labels: number of labels.
    """

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            fastseg.nn.AtrousConvBNAct(3, 8),
            fastseg.nn.AtrousConvBNAct(8, 8, dilation=2),
            nn.Conv2d(8, num_labels, 1),
        )
        terms = (fastseg.PairwiseGaussian(3, 1), fastseg.PairwiseBilateral(20, 0.5, 2))
        self.crf = fastseg.nn.DenseCRF(num_labels, terms, iterations=3, log=True)

    def forward(self, image: Tensor) -> Tensor:
        """Returns log Q, (N, num_labels, H, W), of pictures (N, 3, H, W)."""
        return self.crf(-self.network(image), image)


def discs(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns noisy pictures (N, 3, size, size) and labels (N, size, size), 1 on the disc."""
    centre = size * (0.3 + 0.4 * torch.rand(count, 2, 1, 1, generator=generator))
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    distance = (y - centre[:, 0]).square() + (x - centre[:, 1]).square()
    labels = (distance < (size / 4) ** 2).long()
    noise = 0.7 * torch.randn(count, 3, size, size, generator=generator)
    return labels[:, None] + noise, labels


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Trains; returns the losses."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=60, help="steps of the optimizer")
    parser.add_argument("--size", type=int, default=48, help="height and width of the pictures")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = NetworkWithCRF(2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for step in range(options.steps):
        image, labels = discs(4, options.size, generator)
        loss = F.nll_loss(model(image), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 10 == 0:
            print(f"step {step}: loss {losses[-1]:.3f}")

    model.eval()
    image, labels = discs(8, options.size, generator)
    with torch.no_grad():
        alone = (model.network(image).argmax(1) == labels).float().mean()
        both = (model(image).argmax(1) == labels).float().mean()
    print(f"right pixels: {alone:.1%} by the network alone, {both:.1%} with the CRF")
    sxy = [round(s.exp().item(), 2) for s in model.crf.log_sxy.values()]
    print(f"bandwidths of the terms in pixels: {sxy}, 3 and 20 before training")
    return losses


if __name__ == "__main__":
    main()

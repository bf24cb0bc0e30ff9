"""A SegNet of one's own: encoder and decoder on fastseg's pooling and unpooling.

    python examples/own_segnet.py

Each pooling hands one byte for every window to the unpooling that mirrors it, in place of torch's
int64. To change a network that already has torch's modules, see fastseg.optimize_.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastseg


class OwnSegNet(nn.Module):
    """An encoder of poolings and a decoder of unpoolings with their codes.

    Args:
        num_classes: number of output channels.
        widths: number of channels of each level, the highest resolution first.
    """

    def __init__(self, num_classes: int, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        inputs = (3, *widths[:-1])
        self.encoders = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in zip(inputs, widths, strict=True)
        )
        self.pools = nn.ModuleList(fastseg.nn.BatchNormReLUMaxPool2d(b, 2) for b in widths)
        self.unpool = fastseg.nn.MaxUnpool2d(2)
        outputs = (widths[0], *widths[:-1])
        self.decoders = nn.ModuleList(
            fastseg.nn.AtrousConvBNAct(b, a) for a, b in zip(outputs, widths, strict=True)
        )
        self.score = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (N, num_classes, H, W) of pictures (N, 3, H, W)."""
        kept = []
        for conv, pool in zip(self.encoders, self.pools, strict=True):
            x = conv(x)
            size = x.shape
            x, codes = pool(x)  # codes: uint8, the position of the maximum in its window
            kept.append((codes, size))
        for decoder, (codes, size) in zip(self.decoders[::-1], kept[::-1], strict=True):
            x = decoder(self.unpool(x, codes, output_size=size))
        return self.score(x)


def main(size: tuple[int, int] = (72, 96), steps: int = 40) -> list[float]:
    """Trains the network to tell bright from dark; returns the losses."""
    torch.manual_seed(0)
    model = OwnSegNet(2)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    image = F.interpolate(torch.randn(4, 3, 6, 8), size, mode="bilinear")
    labels = (image.mean(1) > 0).long()
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(image), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} after {steps} steps")
    return losses


if __name__ == "__main__":
    main()

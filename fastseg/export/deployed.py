"""A segmenter's network with the steps before and behind it, as one module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastseg.export.errors import ExportError
from fastseg.models import main_logits
from fastseg.segment import Segmenter


class Deployed(nn.Module):
    """A network that takes prepared tensors or pictures, and returns logits or classes.

    Input: float32 (N, channels, H, W), prepared as the segmenter says; with ``normalise`` uint8
    RGB pictures (N, H, W, 3), or float32 pictures (N, H, W, channels) with the values that files of
    the segmenter's form store.
    Output: logits (N, classes, H, W); with ``class_map`` the class of each pixel (N, H, W), uint8,
    or int64 for more than 256 classes.

    Args:
        segmenter: the network and its preprocessing.
        normalise: whether pictures are normalised inside.
        class_map: whether the output is the class of each pixel.

    Raises:
        ExportError: the network ends in a dense CRF, or is not float32 on the CPU; class_map of a
            network of one class.
        ValueError: pictures for a network of other than three channels, whose weights do not say
            how files store them.
    """

    def __init__(self, segmenter: Segmenter, *, normalise: bool, class_map: bool):
        super().__init__()
        self.network = segmenter.model.eval()
        if getattr(segmenter.model, "crf", None) is not None:
            raise ExportError(
                "the network ends in a dense CRF, which other runtimes do not have: "
                "--without-crf leaves it out (in Python, segmenter.model.crf = None)"
            )
        for parameter in self.network.parameters():
            if parameter.dtype != torch.float32 or not parameter.is_cpu:
                raise ExportError(
                    "the network must be of float32 on the CPU, got "
                    f"{parameter.dtype} on {parameter.device}"
                )
        if class_map and len(segmenter.classes) < 2:
            raise ExportError(
                "a network of one class has no class map: its logit is that of a foreground; "
                "export the logits and threshold them at 0"
            )
        form = segmenter.form if normalise else None
        self.channels = getattr(segmenter.model, "in_channels", 3)
        if normalise and form is None and self.channels != 3:
            raise ValueError(
                f"normalise must be False for a network of {self.channels} channels: "
                "pictures have three"
            )
        self.stored, bands = form is not None, None
        if form is not None:
            self.channels = form.channels
            bands = None if form.indices is None else torch.tensor(form.indices)
        self.register_buffer("bands", bands, persistent=False)
        self.normalise = normalise
        self.class_map = class_map
        self.reverses = segmenter.channels == "BGR"
        self.dtype = torch.uint8 if len(segmenter.classes) <= 256 else torch.int64
        for name in ("mean", "std"):
            values = torch.tensor(list(getattr(segmenter, name)), dtype=torch.float32)
            self.register_buffer(name, values.view(-1, 1, 1), persistent=False)

    def logits(self, image: Tensor) -> Tensor:
        """Returns the logits (N, classes, H, W)."""
        return main_logits(self.network(self._prepared(image) if self.normalise else image))

    def forward(self, image: Tensor) -> Tensor:
        """Returns the logits, or the class of each pixel."""
        logits = self.logits(image)
        return logits.argmax(1).to(self.dtype) if self.class_map else logits

    def _prepared(self, image: Tensor) -> Tensor:
        x = image.permute(0, 3, 1, 2)
        if self.stored:
            x = x if self.bands is None else x.index_select(1, self.bands)
            x = (x - self.mean) / self.std
            return torch.where(x.isfinite(), x, torch.zeros_like(x))  # as fastseg.data.normalise
        x = x.float() / 255
        return ((x.flip(1) if self.reverses else x) - self.mean) / self.std

    def random_input(self, batch: int, height: int, width: int) -> Tensor:
        """Returns an input, the same in every run."""
        generator = torch.Generator().manual_seed(0)
        if self.stored:
            x = torch.randn((batch, height, width, self.channels), generator=generator)
            return x * self.std.mean() + self.mean.mean()
        if self.normalise:
            shape = (batch, height, width, 3)
            return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return torch.randn((batch, self.channels, height, width), generator=generator)

    @property
    def axes(self) -> tuple[str | int, ...]:
        """Names of the input's axes, and how many channels there are."""
        if self.normalise:
            return ("batch", "height", "width", self.channels)
        return ("batch", self.channels, "height", "width")

"""The line that shows how a run goes."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tqdm import tqdm


class Progress:
    """The end of an epoch's bar: its loss, the last mIoU, images a second, the run's time left.

    Args:
        batch_size: images of a step.
        steps: steps that are left in the run.
        history: the finished epochs.
    """

    def __init__(self, batch_size: int, steps: int, history: Sequence[dict[str, float]]) -> None:
        self.batch_size = batch_size
        self.left, self.done = steps, 0
        self.start = time.monotonic()
        self.mious = [record["miou"] for record in history if "miou" in record][-1:]

    def text(self, loss: float) -> str:
        """Returns the text after a step of that loss."""
        self.done += 1
        seconds = max((time.monotonic() - self.start) / self.done, 1e-9)
        left = tqdm.format_interval((self.left - self.done) * seconds)
        miou = [f"mIoU {value:.3f}" for value in self.mious]
        rate = f"{self.batch_size / seconds:.1f} images/s"
        return ", ".join([f"loss {loss:.3f}", *miou, rate, f"{left} left"])

"""Failures outside of a run's own code: broken pictures, workers and processes that have ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastseg.data.image import ImageError
from fastseg.train.processes import is_loss_of_a_process


class TrainingError(ValueError):
    """An error that ends a run, whose last state is saved."""


@contextmanager
def failures_in_a_line(last: Path) -> Iterator[None]:
    """Turns what loaders and other processes raise into errors of one line.

    Args:
        last: the file of the run's last state.

    Raises:
        ImageError: a picture can no longer be read.
        TrainingError: a worker or another process has ended.
    """
    try:
        yield
    except ImageError as error:  # of a worker it begins with the worker's traceback
        raise ImageError(_last_line(error).rpartition("ImageError: ")[2]) from error
    except RuntimeError as error:
        if is_loss_of_a_process(error):
            raise TrainingError(
                f"another process of the run has ended; go on from {last} with --resume"
            ) from error
        if "DataLoader worker" in str(error):
            raise TrainingError(f"{_last_line(error)}; try fewer --workers") from error
        raise


def _last_line(error: Exception) -> str:
    """Returns the last line of an error in a worker, whose first ones are its traceback."""
    return str(error).strip().splitlines()[-1]

"""Warnings about pictures, told as errors are: in one line each."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from fastseg.data.image import ImageWarning


@contextmanager
def image_warnings_in_one_line() -> Iterator[None]:
    """Inside, ImageWarnings go to stderr each time, without the line of code they come from."""
    show = warnings.showwarning

    def show_in_one_line(message, category, *where, **options):
        if issubclass(category, ImageWarning):
            print(f"fastseg: {message}", file=sys.stderr)
        else:
            show(message, category, *where, **options)

    with warnings.catch_warnings():
        warnings.showwarning = show_in_one_line
        warnings.simplefilter("always", ImageWarning)
        yield

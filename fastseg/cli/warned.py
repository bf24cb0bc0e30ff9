"""Warnings about pictures in one line each, like errors."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from fastseg.data.image import ImageWarning


@contextmanager
def image_warnings_in_one_line() -> Iterator[None]:
    """Prints each ImageWarning in the block to stderr, without its line of code.

    What Pillow itself warns of names no file and is silenced, in threads that read ahead too.
    """
    show = warnings.showwarning

    def show_in_one_line(message, category, *where, **options):
        if issubclass(category, ImageWarning):
            print(f"fastseg: {message}", file=sys.stderr)
        else:
            show(message, category, *where, **options)

    with warnings.catch_warnings():
        warnings.showwarning = show_in_one_line
        warnings.simplefilter("always", ImageWarning)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield

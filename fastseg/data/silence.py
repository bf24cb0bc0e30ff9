"""Silence about what Pillow warns of."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pillow_silenced() -> Iterator[None]:
    """Silences the warnings of Pillow's modules in the block, in the main thread alone.

    They are about damaged tags, without the file's name; the pixels are read or an error says why
    not. Filters of warnings belong to the whole process: threads that change them put each other's
    back in any order, so that in another thread the block changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield

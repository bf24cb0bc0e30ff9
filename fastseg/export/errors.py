"""What is said where a network cannot be exported, and of packages that are not installed."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


class ExportError(ValueError):
    """A network that cannot be exported, or a file that cannot be run; a line says why."""


def needed(package: str, purpose: str, install: str | None = None) -> ModuleType:
    """Imports an optional package where it is first needed.

    Args:
        package: the package's name.
        purpose: what needs it, for the error.
        install: what pip installs for the purpose; default: the package.

    Raises:
        ImportError: it is not installed, or cannot be imported here.
    """
    try:
        return importlib.import_module(package)
    except (ImportError, RuntimeError, OSError) as error:
        raise ImportError(
            f"{purpose} needs {package}, which cannot be imported ({first_line(error)}): "
            f"pip install {install or package}"
        ) from error


def is_installed(package: str) -> bool:
    """Whether a package is there to be imported."""
    return importlib.util.find_spec(package) is not None


def first_line(error: BaseException) -> str:
    """Returns the first line of an error that says something, or its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the warnings of exporters back, which speak of their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

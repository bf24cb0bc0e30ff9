"""The version of the installed package."""

from importlib import metadata

try:
    __version__ = metadata.version("fastseg-kernels") or "0+unknown"  # None of damaged metadata
except metadata.PackageNotFoundError:  # a source tree on the path that was never installed
    __version__ = "0+unknown"

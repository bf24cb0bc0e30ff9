"""The version of the installed package."""

from importlib import metadata

try:
    __version__ = metadata.version("fastseg-kernels") or "0+unknown"  # damaged metadata say None
except metadata.PackageNotFoundError:  # the source tree was never installed
    __version__ = "0+unknown"

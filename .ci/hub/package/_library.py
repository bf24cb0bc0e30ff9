"""The names of this build's compiled libraries."""

from pathlib import Path


def library_name(backend: str) -> str:
    """Returns the file name of a backend's library in this folder, or one that is not there.

    Args:
        backend: "cpu" or "cuda".
    """
    found = sorted(Path(__file__).parent.glob(f"_fastseg_{backend}_*.so"))
    return found[0].name if found else f"_fastseg_{backend}.so"

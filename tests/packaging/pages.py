"""The README and the pages of the documentation, as tests read them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = sorted(page for page in ROOT.glob("docs/**/*.md") if "_generated" not in page.parts)
OTHERS = [ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]


def name(page: Path) -> str:
    """Returns the page's path within the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """Returns the page's blocks of code in a language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.S | re.M)


def run_examples(page: Path, namespace: dict) -> dict:
    """Runs the page's Python examples one after the other in one namespace, which it returns."""
    for example in blocks(page, "python"):
        exec(compile(example, str(page), "exec"), namespace)
    return namespace

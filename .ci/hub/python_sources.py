"""Copies the ops' Python modules as a package without a name of its own.

A kernel of the Hub is loaded from any folder, beside other versions of itself: its modules import
each other relatively, and its ops are in the namespace of their build, which `_ops.py` tells.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = Path(__file__).parent / "package"

NAMESPACE = {
    r"(?<![\"'`\w])torch\.ops\.fastseg\b": "_ops.ops",
    r'Library\("fastseg", "DEF"\)': 'Library(_ops.ops.name, "DEF")',
    r'(register_\w+|dispatch_key)\(f"fastseg::\{(\w+)\}"': r"\1(_ops.add_op_namespace_prefix(\2)",
    r'(register_\w+|dispatch_key)\("fastseg::(\w+)"': r'\1(_ops.add_op_namespace_prefix("\2")',
}
"""What names the namespace of ops, and what does so in a build of the Hub."""

LIBRARIES = {r'"_C\.so"': 'library_name("cpu")', r'"_C_cuda\.so"': 'library_name("cuda")'}
"""File names of libraries, which the Hub's builds have in another form."""

TRITON = {
    r'find_spec\("triton"\) is None': 'find_spec("triton") is None'
    ' or importlib.util.find_spec("numpy") is None'
}
"""What decides whether Triton kernels are used: their plans are made with numpy, which a kernel of
the Hub cannot ask for. Where it is missing the references run."""


def imported(module: Path) -> Iterator[Path]:
    """Yields the files of fastseg that a module imports, at its top or later."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fastseg":
            package = ROOT.joinpath(*node.module.split("."))
            names = [package, *(package / name.name for name in node.names)]
            yield from (f for n in names for f in (n.with_suffix(".py"), n / "__init__.py"))


def modules() -> list[Path]:
    """Returns the files that the ops need, and those of the packages that hold them."""
    package = ROOT / "fastseg"
    found, waiting = set(), [package / "ops/__init__.py", package / "_core/pairwise.py"]
    while waiting:
        module = waiting.pop()
        if module in found or not module.exists() or module == package / "__init__.py":
            continue
        found.add(module)
        waiting += imported(module)
        waiting.append(module.parent / "__init__.py")
    return sorted(found)


def rewritten(text: str, depth: int) -> str:
    """Returns a module's text with relative imports and the namespace of the build.

    Args:
        text: the module's text.
        depth: number of packages, below the whole one, that the module is in.
    """
    root = "." * (depth + 1)
    for pattern, replacement in TRITON.items():
        text = re.sub(pattern, replacement, text)
    text = re.sub(r"^(\s*from )fastseg\.", rf"\1{root}", text, flags=re.MULTILINE)
    text = re.sub(r"^(\s*from )fastseg import", rf"\1{root} import", text, flags=re.MULTILINE)
    for table, line in (
        (NAMESPACE, f"from {root} import _ops\n"),
        (LIBRARIES, f"from {root}_library import library_name\n"),
    ):
        replaced = text
        for pattern, replacement in table.items():
            replaced = re.sub(pattern, replacement, replaced)
        if replaced != text:
            text = re.sub(r"^(?=import |from (?!__future__))", line, replaced, count=1, flags=re.M)
    return text


def package() -> dict[str, str]:
    """Returns the texts of the package's files by their paths in it, all but `_ops.py`."""
    files = {path.name: path.read_text() for path in sorted(TEMPLATES.glob("*.py"))}
    for module in modules():
        path = module.relative_to(ROOT / "fastseg")
        files[str(path)] = rewritten(module.read_text(), len(path.parts) - 1)
    return files

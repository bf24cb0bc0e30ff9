"""The house: no import runs back up, and each late one is known."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = (
    {"_core"},
    {"reference"},
    {"kernels"},
    {"ops"},
    {"nn"},
    {"models", "optimize", "metrics", "data"},
    {"zoo"},
    {"segment"},
    {"compat"},
    {"train", "export"},
    {"cli"},
)
"""Folders of the package, from the ground up; one may import from its own and from lower floors."""

PROGRAMS = {"", "__main__", "train.__main__", "train.evaluate"}
"""What starts commands, and so may import them; nothing of the package imports these."""

LATE = {
    # Triton takes seconds to import: where a kernel first runs, no earlier.
    ("ops.conv.aspp", "kernels.conv.aspp"),
    ("ops.conv.atrous_conv2d", "kernels.conv.atrous_conv2d"),
    ("ops.conv.atrous_conv2d_grad", "kernels.conv.atrous_conv2d"),
    ("ops.conv.atrous_conv2d_grad", "kernels.conv.weight_grad"),
    ("ops.conv.depthwise_conv2d", "kernels.conv.depthwise_conv2d"),
    ("ops.crf.exact_gaussian_blocks", "kernels.crf.exact_gaussian_filter"),
    ("ops.crf.exact_gaussian_filter", "kernels.crf.exact_gaussian_filter"),
    # torch's counter imports Triton: registered once somebody else imports it.
    ("ops", "ops.conv.flops"),
}
"""Imports within functions."""


def modules() -> dict[str, Path]:
    """The files of the package by their names without ``fastseg.``."""
    found = {}
    for folder, prefix in ((ROOT / "fastseg", ""), (ROOT / "kernels", "kernels.")):
        for path in folder.rglob("*.py"):
            name = ".".join(path.relative_to(folder).with_suffix("").parts)
            if not name.startswith("kernels"):  # the link fastseg/kernels
                found[(prefix + name).removesuffix("__init__").rstrip(".")] = path
    return found


MODULES = modules()


def imports(name: str) -> Iterator[tuple[str, bool]]:
    """What a file imports of fastseg, and whether it does as it is imported itself."""
    tree = ast.parse(MODULES[name].read_text())
    at_once = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            targets = [
                f"{node.module}.{alias.name}"
                if f"{node.module}.{alias.name}".removeprefix("fastseg.") in MODULES
                else node.module
                for alias in node.names
            ]
        else:
            continue
        for target in targets:
            found = target.removeprefix("fastseg").lstrip(".")
            if target.split(".")[0] == "fastseg" and found in MODULES:
                yield found, id(node) in at_once


def floor(name: str) -> int:
    return next(i for i, folders in enumerate(FLOORS) if name.split(".")[0] in folders)


def test_every_folder_has_its_floor():
    folders = {name.split(".")[0] for name in MODULES} - {"", "__main__"}
    assert folders == set().union(*FLOORS)


@pytest.mark.parametrize("name", sorted(MODULES.keys() - PROGRAMS))
def test_imports_run_down(name):
    for target, _ in imports(name):
        assert target == "" or target not in PROGRAMS, f"{name} imports a program, {target}"
        same = target.split(".")[0] == name.split(".")[0]
        assert target == "" or same or floor(target) < floor(name), f"{name} imports {target}"
        assert target != "" or name == "compat.pydensecrf", f"{name} imports fastseg itself"


def test_late_imports_are_those_with_a_reason():
    late = {(n, target) for n in MODULES for target, at_once in imports(n) if not at_once}
    assert late - {("compat.pydensecrf", "")} == LATE


def test_ground_floor_loads_the_libraries_alone():
    assert [name for name, _ in imports("_core.extension")] == ["_core.nvml"]
    assert not list(imports("_core.nvml"))
    assert not list(imports("_core.startup"))

"""The public namespace holds public names only."""

from __future__ import annotations

import importlib
import json
import pkgutil

import pytest

from fastseg.compat.old_paths import MOVED
from tests.forked_programs import run_programs

PACKAGES = (
    "fastseg",
    "fastseg.data",
    "fastseg.export",
    "fastseg.metrics",
    "fastseg.models",
    "fastseg.models.backbones",
    "fastseg.nn",
    "fastseg.ops",
    "fastseg.optimize",
    "fastseg.segment",
    "fastseg.train",
    "fastseg.zoo",
)

PUBLIC_NAMES = """
import importlib, json, sys, types
package = importlib.import_module(sys.argv[1])
names = [name for name in dir(package) if not name.startswith("_")]
print(json.dumps({n: isinstance(getattr(package, n), types.ModuleType) for n in names}))
"""


@pytest.fixture(scope="module")
def public_names() -> dict[str, dict[str, bool]]:
    """Names in each package's dir() after its import in a new process, whether they are modules."""
    printed = run_programs([["-c", PUBLIC_NAMES, package] for package in PACKAGES])
    return dict(zip(PACKAGES, map(json.loads, printed), strict=True))


def submodules(package: str) -> set[str]:
    """The package's modules, by their names of today and by those that old imports have."""
    module = importlib.import_module(package)
    old = {f"fastseg.{name}".rpartition(".") for name in MOVED}
    return {found.name for found in pkgutil.iter_modules(module.__path__)} | {
        name for parent, _, name in old if parent == package
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_all_and_submodules(package, public_names):
    exported = {n for n in importlib.import_module(package).__all__ if not n.startswith("_")}
    found = public_names[package]
    assert exported <= found.keys()
    others = found.keys() - exported
    assert others <= submodules(package)
    assert all(found[name] for name in others), "a submodule's name holds something else"


@pytest.mark.parametrize("package", PACKAGES)
def test_all_names_each_public_name_once(package):
    names = importlib.import_module(package).__all__
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("package", ["fastseg.ops", "fastseg.nn", "fastseg.models"])
def test_a_module_does_not_hide_the_function_of_its_name(package, public_names):
    found = public_names[package]
    exported = importlib.import_module(package).__all__
    assert not [name for name in exported if found[name]]

"""The folders of fastseg.optimize: none imports from one below it in the package's docstring."""

import pytest

import fastseg.optimize
from tests.packaging.test_layers import MODULES, imports

FOLDERS = ("classify", "trace", "blocks", "match")
FILES = [name for name in MODULES if name.startswith("optimize.")]


def floor(name: str) -> int:
    """The place of a file's folder; files in no folder come after all of them."""
    folder = name.split(".")[1]
    return FOLDERS.index(folder) if folder in FOLDERS else len(FOLDERS)


def test_docstring_names_the_folders_in_their_order():
    places = [fastseg.optimize.__doc__.index(f"``{folder}/``") for folder in FOLDERS]
    assert places == sorted(places)
    assert {name.split(".")[1] for name in FILES} - {"optimize", "plan", "report"} == {*FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_name_each_file(folder):
    documented = getattr(fastseg.optimize, folder).__doc__
    files = [name.split(".")[2] for name in FILES if name.startswith(f"optimize.{folder}.")]
    assert files
    assert [file for file in files if f"``{file}.py``" not in documented] == []


@pytest.mark.parametrize("name", FILES)
def test_imports_run_down(name):
    for target, _ in imports(name):
        if target.startswith("optimize."):
            assert floor(target) <= floor(name), f"{name} imports {target}"

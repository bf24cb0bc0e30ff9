"""Types of the public functions: all are there, and a type checker in strict mode knows them."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.test_namespace import PACKAGES

ROOT = Path(__file__).resolve().parents[2]
CHECKERS = ("pyright", "basedpyright")


def public_functions() -> Iterator[tuple[str, object]]:
    """The functions, methods and constructors of the public packages, by their names."""
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value):
                yield f"{package}.{name}", value
            elif inspect.isclass(value):
                for method, member in vars(value).items():
                    function = getattr(member, "__func__", getattr(member, "fget", member))
                    public = not method.startswith("_") or method in ("__init__", "__call__")
                    if public and inspect.isfunction(function) and function.__module__ != "typing":
                        yield f"{package}.{name}.{method}", function


@pytest.mark.parametrize(("name", "function"), dict(public_functions()).items())
def test_public_functions_are_fully_typed(name, function):
    signature = inspect.signature(function)
    untyped = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.annotation is parameter.empty and parameter.name not in ("self", "cls")
    ]
    assert not untyped, f"{name} has parameters without a type: {untyped}"
    typed = signature.return_annotation is not signature.empty
    assert typed or name.endswith("__init__"), f"{name} does not say what it returns"


@pytest.fixture
def check(tmp_path):
    """Returns what pyright says of a script in strict mode, which sees this source tree."""
    found = [name for name in CHECKERS if importlib.util.find_spec(name)]
    if not found:
        pytest.skip(f"needs one of {', '.join(CHECKERS)}: pip install basedpyright")
    program = shutil.which(found[0], path=str(Path(sys.executable).parent))
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(ROOT)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))

    def run(text: str) -> tuple[int, list[str]]:
        script = tmp_path / "script.py"
        script.write_text(text)
        command = [program, "--outputjson", "--pythonpath", sys.executable, script.name]
        printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
        report = json.loads(printed)
        problems = [f"{d['rule']}: {d['message']}" for d in report["generalDiagnostics"]]
        return report["summary"]["filesAnalyzed"], problems

    return run


def test_a_client_script_passes_in_strict_mode(check):
    assert check((ROOT / "tests/packaging/typed_client.py").read_text()) == (1, [])


def test_the_checker_sees_the_types(check):
    """What is wrong is an error, so that the client script is not passed by mistake."""
    _, problems = check("import fastseg\n\nfastseg.max_pool2d('x', 2)\nfastseg.models_()\n")
    assert any("reportArgumentType" in p for p in problems)
    assert any("reportAttributeAccessIssue" in p for p in problems)

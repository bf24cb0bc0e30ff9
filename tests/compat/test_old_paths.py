"""Imports and pickles of earlier versions find their modules."""

from __future__ import annotations

import importlib
import pickle

import pytest

import fastseg
from fastseg.compat.old_paths import MOVED
from tests.forked_programs import run_each


@pytest.mark.parametrize("old", MOVED)
def test_one_module_has_both_names(old):
    if old.startswith("kernels"):
        pytest.importorskip("triton")
    new = importlib.import_module(f"fastseg.{MOVED[old]}")
    spec = new.__spec__
    assert importlib.import_module(f"fastseg.{old}") is new
    assert new.__spec__ is spec
    assert spec.name == new.__name__ == f"fastseg.{MOVED[old]}"


def test_functions_stay_what_their_names_are():
    importlib.import_module("fastseg.ops.dense_crf")
    for name in ("aspp", "atrous_conv2d", "dense_crf", "max_pool2d", "max_unpool2d"):
        assert getattr(fastseg.ops, name) is getattr(fastseg, name)


def test_old_pickles():
    term = fastseg.PairwiseGaussian(sxy=5)
    old = pickle.dumps(term, 0).replace(b"fastseg._core.pairwise", b"fastseg.pairwise")
    assert b"fastseg.pairwise" in old
    assert pickle.loads(old) == term


PROGRAMS = {
    "a module of the script": "import fastseg.densecrf as d; d.DenseCRF2D(2, 2, 2)",
    "its functions": "from fastseg.densecrf.utils import unary_from_labels",
    "an attribute": "import fastseg; fastseg.pairwise.PairwiseGaussian(2)",
    "other names are missing": "import importlib.util; "
    "assert importlib.util.find_spec('fastseg.no_such_module') is None",
}


COMMANDS = ("fastseg.evaluate", "fastseg.train.evaluate", "fastseg.train")


@pytest.fixture(scope="module")
def ended():
    """How programs and commands have ended, each in a process of its own."""
    programs = [["-c", text] for text in PROGRAMS.values()]
    helps = [["-m", name, "--help"] for name in COMMANDS]
    return dict(zip((*PROGRAMS, *COMMANDS), run_each(programs + helps), strict=True))


@pytest.mark.parametrize("name", PROGRAMS)
def test_in_a_process_of_its_own(ended, name):
    assert ended[name].returncode == 0, ended[name].stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_by_module(ended, name):
    assert ended[name].returncode == 0, ended[name].stderr
    assert ended[name].stderr == ""
    assert "--data" in ended[name].stdout
    assert name == "fastseg.train" or "--weights" in ended[name].stdout

"""The pages of the documentation: examples run, commands have their options, files are there."""

from __future__ import annotations

import re
import shlex

import pytest

from tests.forked_programs import run_programs
from tests.packaging.pages import DOCS, OTHERS, README, ROOT, blocks, name, run_examples

PAGES = [README, *OTHERS, *DOCS]
WITH_EXAMPLES = [page for page in DOCS if blocks(page, "python")]
FOLDERS = ("fastseg", "csrc", "kernels", "tests", "benchmarks", "examples", "docs")
COMMANDS = {
    "fastseg segment": ["-m", "fastseg", "segment"],
    "fastseg crf": ["-m", "fastseg", "crf"],
    "fastseg export": ["-m", "fastseg", "export"],
    "fastseg info": ["-m", "fastseg", "info"],
    "fastseg optimize": ["-m", "fastseg", "optimize"],
    "fastseg demo": ["-m", "fastseg", "demo"],
    "fastseg data": ["-m", "fastseg", "data"],
    "fastseg train": ["-m", "fastseg", "train"],
    "fastseg evaluate": ["-m", "fastseg", "evaluate"],
    "python -m fastseg.train": ["-m", "fastseg.train"],
    "python -m fastseg.train.evaluate": ["-m", "fastseg.train.evaluate"],
    "python -m benchmarks.optimize": ["-m", "benchmarks.optimize"],
    "python examples/segment_folder.py": ["examples/segment_folder.py"],
    "python examples/segment_with_ray.py": ["examples/segment_with_ray.py"],
}
"""The commands whose options are tested, and what Python is given for them."""


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=name)
def test_examples_run(page):
    run_examples(page, {})


def test_pages_of_ops_have_examples():
    pages = {name(page) for page in WITH_EXAMPLES}
    ops = {name(page) for page in DOCS if page.parent.name == "ops"}
    assert ops | {"docs/dense_crf.md", "docs/optimize.md"} <= pages


def command_lines() -> list[list[str]]:
    """The pages' shell commands as words, without comments."""
    text = "\n".join(block for page in PAGES for block in blocks(page, "sh"))
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def help_of_commands() -> dict[str, str]:
    """What each command prints for --help."""
    printed = run_programs([[*words, "--help"] for words in COMMANDS.values()])
    return dict(zip(COMMANDS, printed, strict=True))


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_have_the_options_that_pages_give(command, help_of_commands):
    prefix = command.split()
    used = [words for words in command_lines() if words[: len(prefix)] == prefix]
    assert used, f"no page shows {command}"
    options = {word for words in used for word in words if word.startswith("-") and word != "-m"}
    shown = help_of_commands[command]
    missing = {option for option in options if not re.search(rf"{option}(?![\w-])", shown)}
    assert not missing


def test_targets_of_make_are_there():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    used = {words[1] for words in command_lines() if words[0] == "make"}
    assert {"run", "test", "docs"} <= used <= targets


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_a_page_names_are_there(page):
    text = page.read_text()
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./*-]*)`", text)
    missing = [path for path in named if not list(ROOT.glob(path.rstrip("/")))]
    links = re.findall(r"\]\(([^)\s#:]+)(?:#[^)]*)?\)", text)
    for link in links:
        target = ROOT / "docs" / link[1:] if link.startswith("/") else page.parent / link
        if not target.exists() and "_generated" not in link:
            missing.append(link)
    assert not missing


def test_every_page_is_reached():
    """Each page stands in a list of contents; Sphinx warns of the others, too."""
    listed = set()
    for page in DOCS:
        for block in re.findall(r"^```{toctree}\n(.*?)^```", page.read_text(), flags=re.S | re.M):
            entries = [line for line in block.splitlines() if line and not line.startswith(":")]
            listed |= {(page.parent / f"{entry}.md").resolve() for entry in entries}
    assert {page for page in DOCS if page != ROOT / "docs" / "index.md"} == listed


def test_the_version_is_the_same_everywhere():
    (version,) = re.findall(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), flags=re.M)
    citation = (ROOT / "CITATION.cff").read_text()
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^version: (.*)", citation, flags=re.M) == [version]
    released = re.findall(r"^## (\d\S*) - (\S+)", changes, flags=re.M)
    dates = re.findall(r'^date-released: "(.*)"', citation, flags=re.M)
    assert [released[0]] == [(version, date) for date in dates]

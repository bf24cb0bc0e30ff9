"""Ctrl-C at any moment of a command: one line and status 130, in the middle of imports too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fastseg._core import startup
from fastseg._core.atomic import atomic_write

ROOT = Path(__file__).resolve().parents[2]
# Sends this process a signal as a module is imported, before the module is looked for.
INTERRUPTER = """
import os, signal, sys

class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            os.kill(os.getpid(), getattr(signal, os.environ["INTERRUPT_BY"]))

sys.meta_path.insert(0, Interrupter())
"""
# A console script, as pip writes it.
SCRIPT = """
import sys
from fastseg.cli import main
if __name__ == "__main__":
    sys.exit(main())
"""
# From the first import to the last, and one that segmenting a picture needs.
MODULES = (
    "torch",
    "numpy",
    "torch._C",
    "torch.nn.functional",
    "fastseg.ops",
    "fastseg._core.extension",
    "fastseg.zoo",
    "fastseg.cli",
    "tqdm",
    "fastseg.cli.segment",
)


@pytest.fixture
def run(tmp_path):
    """run(command, module): the command, interrupted as it imports the module."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTER)
    (tmp_path / "fastseg_script").mkdir()
    (tmp_path / "fastseg_script/fastseg").write_text(SCRIPT)

    def run(*command, at, by="SIGINT", status=130):
        result = subprocess.run(
            [sys.executable, *map(str, command)],
            env=os.environ
            | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "INTERRUPT_AT": at, "INTERRUPT_BY": by},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert result.returncode == status, result.stderr
        return result

    return run


@pytest.mark.parametrize("module", MODULES)
def test_an_interrupt_while_a_command_imports(module, run):
    result = run("-m", "fastseg", "info", at=module)
    assert (result.stdout, result.stderr) == ("", "fastseg: interrupted\n")


@pytest.mark.parametrize("by", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(
    "command",
    [
        ("-m", "fastseg.train", "--data", "x", "--out", "y"),
        ("-W", "ignore", "-mfastseg.evaluate", "--data", "x"),
        ("fastseg_script/fastseg", "info"),
    ],
)
def test_every_way_to_start_a_command(command, by, run):
    assert run(*command, at="torch", by=by).stderr == "fastseg: interrupted\n"


def test_an_interrupt_while_a_picture_is_segmented(run, tmp_path):
    Image.effect_noise((40, 30), 50).save(tmp_path / "photo.png")
    command = ("-m", "fastseg", "segment", "photo.png", "-o", "out.png")
    result = run(*command, at="PIL.PngImagePlugin")
    assert (result.stdout, result.stderr) == ("", "fastseg: interrupted\n")
    assert not (tmp_path / "out.png").exists()


def test_a_program_that_imports_fastseg_keeps_its_handlers(run):
    program = "import fastseg, signal; print(signal.getsignal(signal.SIGINT).__name__)"
    assert run("-c", program, at="nothing", status=0).stdout == "default_int_handler\n"
    result = run("-c", "import fastseg", at="fastseg.ops", status=-signal.SIGINT)
    assert "KeyboardInterrupt" in result.stderr


def test_signals_that_are_ignored_or_handled_stay_so(monkeypatch):
    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)
        try:
            for handler in (signal.SIG_IGN, print):
                signal.signal(number, handler)
                startup.end_on_signals()
                assert signal.getsignal(number) is handler
        finally:
            signal.signal(number, before)


def test_files_that_are_not_finished_are_removed(tmp_path):
    child = os.fork()
    if child == 0:
        with atomic_write(tmp_path / "file"):
            signal.signal(signal.SIGTERM, startup._end)
            os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "orig_argv", "is_command"),
    [
        (["-m", "info"], ["python", "-m", "fastseg", "info"], True),
        (["-m", "--data", "-m"], ["python", "-X", "dev", "-mfastseg.train", "--data", "-m"], True),
        (["-m", "fastseg"], ["python", "-m", "pytest", "fastseg"], False),
        (["/bin/fastseg", "info"], ["python", "/bin/fastseg", "info"], True),
        (["/bin/pytest"], ["python", "/bin/pytest"], False),
        (["-c"], ["python", "-c", "import fastseg"], False),
        ([""], ["python"], False),
    ],
)
def test_commands_are_known_from_programs(argv, orig_argv, is_command, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    assert startup.is_a_command() == is_command

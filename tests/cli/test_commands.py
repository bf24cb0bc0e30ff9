"""Every command with what a user may give it: one line and an exit status, never a traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastseg.cli import main as fastseg
from fastseg.data import CAMVID_CLASSES, CAMVID_PALETTE
from fastseg.models import build_model
from fastseg.train.__main__ import main as train
from fastseg.train.evaluate import main as evaluate
from fastseg.zoo.checkpoint import save_model
from tests.train.foreign_masks import make_foreign
from tests.train.synthetic_camvid import make_camvid

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"width": 4, "kernel_size": 3}
UNREADABLE = "is not a readable checkpoint"
NO_ROOM = "fastseg: the output cannot be written \\(No space left on device\\)"
TOO_LARGE = "File too large"
SEGMENT = "segment photo.png -o out.png --weights small.pt"
CRF = "crf photo.png --labels labels.png -o out.png"
TRAIN = (
    "--data camvid --out {out} --option width=4 --option kernel_size=3 --batch-size 2 --height 48 "
    "--crop 32 48 --epochs 1 --threads 1"
)
EVALUATE = "--data camvid --weights small.pt"
WORKING = (
    "fastseg --help",
    "fastseg info",
    f"fastseg {SEGMENT}",
    f"fastseg.train.evaluate {EVALUATE}",
)
TO_STREAMS = (
    ({"stdout": "/dev/full"}, 1, NO_ROOM),
    ({"stdout": "no reader"}, 1, ""),
    ({"stdout": "closed"}, 0, ""),
    ({"encoding": "ascii"}, 0, ""),
)
# By command: arguments, and what is said on stderr, as a pattern.
UNUSABLE = {
    "fastseg": {
        "": "required: COMMAND",
        "nonsense": r"invalid choice: 'nonsense' \(choose from .*segment",
        "segment": "required: image",
        "info more": "unrecognized arguments: more",
        "segment photo.png --nonsense": "unrecognized arguments: --nonsense",
        "segment none.png": "fastseg: none.png: no such file",
        "segment folder": "fastseg: folder: has no pictures",
        "segment text.txt": "text.txt: not an image",
        "segment cut.png -o out.png": "cut.png: damaged or truncated image",
        f"{SEGMENT} -o out.jpg": "out.jpg: the output is a PNG",
        "segment photo.png -o none/out.png": "there is no folder none",
        "segment photo.png -o photo.png/out.png": "there is no folder photo.png",
        f"{SEGMENT} --weights none.pt": "no checkpoint at none.pt; shipped ones are deeplabv3plus",
        f"{SEGMENT} --weights folder": "no checkpoint at folder",
        f"{SEGMENT} --weights cut.pt": UNREADABLE,
        f"{SEGMENT} --weights text.txt": UNREADABLE,
        f"{SEGMENT} --weights photo.png": UNREADABLE,
        f"{SEGMENT} --weights empty.pt": "the file is empty",
        f"{SEGMENT} --weights pointer.pt": "a pointer of Git LFS",
        f"{SEGMENT} --weights cut.safetensors": UNREADABLE,
        f"{SEGMENT} --weights whole.pt": "a whole torch.nn.*Conv2d|holds a torch.nn.*Conv2d",
        f"{SEGMENT} --beside none.pt": "no checkpoint at none.pt",
        f"{SEGMENT} --beside cut.pt": UNREADABLE,
        f"{SEGMENT} --option foo=1": "^fastseg: segnet_basic.. got .*'foo'; its options are width",
        f"{SEGMENT} --option foo": "'foo' is not NAME=VALUE",
        f"{SEGMENT} --option width=-1": "^fastseg: width must be at least 1",
        f"{SEGMENT} --option width=abc": "^fastseg: segnet_basic.*width='abc'",
        f"{SEGMENT} --option width=8": r"it fits with width=4 \(not 8\)",
        f"{SEGMENT} --option kernel_size=2": "^fastseg: .*kernel_size",
        f"{SEGMENT} --option backend=gpu": "^fastseg: backend must be",
        f"{SEGMENT} --model nonsense": r"invalid choice: 'nonsense' \(choose from .*unet",
        f"{SEGMENT} --model unet": "is a segnet_basic of fastseg, not a unet",
        f"{SEGMENT} --source nonsense": r"invalid choice: 'nonsense' \(choose from .*smp",
        f"{SEGMENT} --source smp": "source='fastseg' fits",
        f"{SEGMENT} --device nonsense": "--device nonsense: not a device; give cpu, cuda or cuda:1",
        f"{SEGMENT} --device cuda:99": r"--device cuda:99: torch sees \d+ CUDA devices",
        f"{SEGMENT} --device cuda:-1": "--device cuda:-1",
        f"{SEGMENT} --device meta": "only cpu and cuda are supported",
        f"{SEGMENT} --short-side 0": "short_side must be at least 1",
        f"{SEGMENT} --short-side many": "invalid int value: 'many'",
        "crf none.png --labels labels.png": "none.png: no such file",
        "crf photo.png --labels none.png": "none.png: no such file",
        "crf photo.png --labels folder": "folder",
        "crf photo.png --unary text.txt": "text.txt: not an .npy",
        "crf photo.png --unary none.npy": "none.npy: No such file or directory",
        f"{CRF} --quality best": "invalid choice: 'best'",
        "crf --tune": "one of the arguments --unary --labels --weights is required",
        "crf --tune --weights none.pt --images folder --masks folder": "no checkpoint at none.pt",
        "demo none.png": "fastseg: none.png: no such file",
        "demo text.txt": "text.txt: not an image",
        "demo -o none/demo.png": "there is no folder none",
    },
    "fastseg.train": {
        "--out run": "give either --data DIR, or --images DIR and --masks DIR",
        f"{TRAIN} --data none": "none is not a folder",
        f"{TRAIN} --data photo.png": "photo.png is not a folder",
        f"{TRAIN} --data foreign": "foreign has CamVid.s folders, .*the ids 0, 1, CamVid's",
        f"{TRAIN} --data cut_camvid": "cut_camvid.* not CamVid.*train/001.png: damaged or trunc",
        f"{TRAIN} --data odd_camvid": "odd_camvid.* not CamVid.*valannot/001.png cannot be read",
        f"{TRAIN} --out photo.png": "photo.png: File exists",
        f"{TRAIN} --out photo.png/run": "photo.png/run: Not a directory",
        f"{TRAIN} --model nonsense": r"invalid choice: 'nonsense' \(choose from",
        f"{TRAIN} --option foo=1": "segnet_basic.. got an .*'foo'; its options are width",
        f"{TRAIN} --option width=0": "width must be at least 1",
        f"{TRAIN} --option width=-3.5": "width must be at least 1",
        f"{TRAIN} --batch-size 0": "batch_size must be at least 1, got 0",
        f"{TRAIN} --epochs 0": "epochs must be at least 1, got 0",
        f"{TRAIN} --eval-every 0": "eval_every must be at least 1, got 0",
        f"{TRAIN} --seed -1": "seed must be at least 0 and at most 2147483647, got -1",
        f"{TRAIN} --threads -2": "threads must be at least 0",
        f"{TRAIN} --lr nan": "lr must be at least 0, got nan",
        f"{TRAIN} --lr 1e30": "the loss is .* start again with a lower --lr",
        f"{TRAIN} --crop 8 8": "cannot be trained on 2 crops of 8x8: .* at least 16x16",
        f"{TRAIN} --crop 0 8": "crop must be at least 1",
        f"{TRAIN} --backbone-weights none.pth": "must have a backbone of",
        f"{TRAIN} --backbone-lr 0.1": "backbone_lr must be 1: a SegNet has no backbone",
        f"{TRAIN} --resume": "no checkpoint at {out}/last.pt",
        f"{TRAIN} --out cut_run --resume": f"cut_run/last.pt .*{UNREADABLE}",
        f"{TRAIN} --out odd_run --resume": "odd_run/last.pt is not the state of a training run",
        f"{TRAIN} --out odd_run": "odd_run holds a run; give --resume or another --out",
    },
    "fastseg.train.evaluate": {
        "--data camvid": "one of the arguments --weights --predictions is required",
        f"{EVALUATE} --weights none.pt": "no checkpoint at none.pt; shipped ones are deeplabv3plus",
        f"{EVALUATE} --weights folder": "no checkpoint at folder",
        f"{EVALUATE} --weights cut.pt": UNREADABLE,
        f"{EVALUATE} --weights text.txt": UNREADABLE,
        f"{EVALUATE} --weights other.pt": "other.pt knows 3 classes, a, b, c, ...: other ones than",
        f"{EVALUATE} --data none": "none is not a folder",
        f"{EVALUATE} --data foreign": "foreign has CamVid.s folders, but is not CamVid",
        f"{EVALUATE} --data odd_camvid": "valannot/001.png cannot be read",
        f"{EVALUATE} --data cut_camvid --split train": "train/001.png: damaged or truncated",
        f"{EVALUATE} --split dev": "--split dev: neither shares, such as 0.8,0.2, nor a file",
        f"{EVALUATE} --backend gpu": r"invalid choice: 'gpu'",
    },
}
LIMITED = {
    f"fastseg {SEGMENT}": ({"file_size": 100}, 2, f"out.png: .*{TOO_LARGE}"),
    f"fastseg {SEGMENT} --short-side 20000": ({"memory": 2**28}, 2, "not enough memory"),
    f"fastseg.train {TRAIN}": ({"file_size": 2000}, 2, TOO_LARGE),
}
MAINS = {"fastseg": fastseg, "fastseg.train": train, "fastseg.train.evaluate": evaluate}
NAMES = ("bild-\u00e4\u4e2d.png", os.fsdecode(b"\xff\xfe.png"))


def small_weights(path: Path, classes: list[str]) -> None:
    torch.manual_seed(0)
    metadata = {"model": "segnet_basic", "options": SMALL, "classes": classes, "short_side": 32}
    metadata |= {"mean": [0.5] * 3, "std": [0.25] * 3, "palette": CAMVID_PALETTE[: len(classes)]}
    save_model(path, build_model("segnet_basic", len(classes), **SMALL), metadata)


def fill(folder: Path) -> None:
    """The files that the cases name."""
    Image.effect_noise((40, 30), 50).convert("RGB").save(folder / "photo.png")
    Image.new("L", (40, 30), 1).save(folder / "labels.png")
    for name in NAMES:
        shutil.copy(folder / "photo.png", folder / name)
    (folder / "cut.png").write_bytes((folder / "photo.png").read_bytes()[:500])
    (folder / "text.txt").write_text("not what it should be")
    (folder / "folder").mkdir()
    small_weights(folder / "small.pt", list(CAMVID_CLASSES))
    small_weights(folder / "other.pt", ["a", "b", "c"])
    (folder / "cut.pt").write_bytes((folder / "small.pt").read_bytes()[:5000])
    (folder / "empty.pt").touch()
    (folder / "cut.safetensors").write_bytes(b"\x20\0\0\0\0\0\0\0{")
    (folder / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    torch.save(torch.nn.Conv2d(1, 1, 1), folder / "whole.pt")
    for name in ("camvid", "cut_camvid", "odd_camvid"):
        make_camvid(folder / name)
    picture = folder / "cut_camvid/train/001.png"
    picture.write_bytes(picture.read_bytes()[:300])
    (folder / "odd_camvid/valannot/001.png").write_text("not a picture")
    make_foreign(folder / "foreign", "0 and 1")
    for name in ("cut_run", "odd_run"):
        (folder / name).mkdir()
    shutil.copy(folder / "cut.pt", folder / "cut_run/last.pt")
    shutil.copy(folder / "small.pt", folder / "odd_run/last.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    fill(folder)
    return folder


def check_error(err: str, said: str) -> None:
    """Of an unusable input: the pattern in one line, or under argparse's usage."""
    assert re.search(said, err, re.MULTILINE), err
    lines = [line for line in err.splitlines() if "camvid is CamVid" not in line]
    assert len(lines) == 1 or lines[0].startswith("usage:"), err


@pytest.mark.parametrize(
    ("command", "arguments"),
    [(c, arguments) for c, cases in UNUSABLE.items() for arguments in cases],
)
def test_what_cannot_be_used_is_said_in_a_line(command, arguments, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    place = {"out": "run of " + re.sub(r"\W+", "_", arguments)[-60:]}
    try:
        status = MAINS[command]([part.format(**place) for part in arguments.split()])
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    check_error(err.rpartition("\r")[2], UNUSABLE[command][arguments].format(**place))
    assert (status, out) == (2, "")


def forked():
    """(command and arguments, further settings, exit status, pattern of stderr) of each case."""
    for line in WORKING:
        for settings, status, said in TO_STREAMS:
            yield line, settings, status, said
    yield f"fastseg.train {TRAIN}", {"stdout": "/dev/full"}, 1, NO_ROOM
    yield f"fastseg.train {TRAIN}", {"stdout": "no reader"}, 1, ""
    yield f"fastseg.train {TRAIN}", {"encoding": "ascii"}, 0, "camvid is CamVid: sky, building"
    for line, (settings, status, said) in LIMITED.items():
        yield line, settings, status, said
    for name in NAMES:
        for encoding in ("ascii", "utf-8"):
            line = f"fastseg segment {name} -o out-{name} --weights small.pt"
            yield line, {"encoding": encoding}, 0, ""
            yield f"fastseg segment none-{name}", {"encoding": encoding}, 2, "no such file"


FORKED = list(forked())


@pytest.fixture(scope="module")
def results(folder):
    """What came of the commands that run in processes of their own."""
    cases = []
    for number, (line, settings, *_) in enumerate(FORKED):
        command, _, arguments = line.format(out=f"run{number}").partition(" ")
        cases.append({"command": command, "arguments": arguments.split(), **settings})
    (folder / "cases.json").write_text(json.dumps(cases))
    run = subprocess.run(
        [sys.executable, ROOT / "tests/cli/run_commands.py", "cases.json"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize(
    "number", range(len(FORKED)), ids=[ascii(f"{line} {settings}") for line, settings, *_ in FORKED]
)
def test_streams_limits_and_names(number, results):
    _, settings, status, said = FORKED[number]
    out, err = results[number]["out"], results[number]["err"]
    assert results[number]["status"] == status, err
    for word in ("Traceback", "Exception ignored", "Warning"):
        assert word not in err
    if status == 2:
        check_error(err.rpartition("\r")[2], said)
    else:
        assert re.search(said, err), err
    assert bool(out) == (status == 0 and settings.get("stdout") != "closed")


def test_python_without_docstrings():
    """-OO strips them, and the first line of a command's is its summary."""
    for words in (["--help"], ["segment", "--help"], ["info"]):
        done = subprocess.run(
            [sys.executable, "-OO", "-m", "fastseg", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "fastseg" in done.stdout

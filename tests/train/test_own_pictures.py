"""From one's own pictures to a network: the whole way by commands, and what a run's options do."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import BatchNorm2d

from fastseg.cli import main
from fastseg.data.image import ImageError
from fastseg.data.layouts import CAMVID_LAYOUT
from fastseg.train import Config, Trainer
from fastseg.zoo import checkpoint
from tests.data import own_pictures as own
from tests.data.own_pictures import make_pictures
from tests.process_groups import torchrun
from tests.zoo.other_models import import_or_skip

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--model", "unet", "--option", "width=4", "--option", "depth=2", "--threads", "1")
DEFAULT = ("--option", "width=4", "--threads", "1")


class Never:
    received = None

    def check(self):
        pass


def data(root):
    return ["--images", f"{root}/img", "--masks", f"{root}/mask"]


def config_of(root, **changes):
    given = {"images": f"{root}/img", "masks": f"{root}/mask", "classes": f"{root}/names.txt"}
    given |= {"model": "unet", "options": {"width": 4, "depth": 2}, "epochs": 2, "batch_size": 4}
    return Config(**{**given, "out": str(root / "run"), **changes})


def trained(config):
    trainer = Trainer(config)
    trainer.run(Never())
    return trainer


def weights(run):
    return checkpoint.load(Path(run) / "last.pt")["model"]


@pytest.mark.parametrize(
    ("pictures", "processes", "accumulate", "batch"),
    [
        (1, 1, 1, 2),
        (23, 1, 1, 2),
        (24, 1, 1, 3),
        (63, 1, 1, 7),
        (64, 1, 1, 8),
        (9000, 1, 1, 8),
        (1, 4, 1, 4),
        (64, 3, 1, 9),
        (24, 1, 2, 4),
        (24, 2, 2, 4),
    ],
)
def test_the_batch_of_few_pictures(pictures, processes, accumulate, batch):
    source = SimpleNamespace(name=CAMVID_LAYOUT.name, parts={"train": range(pictures)})
    config = Config(accumulate=accumulate)
    assert config.resolved(source, processes).batch_size == batch
    assert replace(config, batch_size=5).resolved(source, processes).batch_size == 5


def same(a, b, **tolerance):
    torch.testing.assert_close(a, b, **({"rtol": 0, "atol": 0} | tolerance))


@pytest.mark.parametrize(
    ("count", "classes", "options"),
    [
        (6, 2, {"mask": own.binary}),
        (3, 3, {"mask": own.with_palette}),
        (1, 2, {"sizes": [(5, 9)]}),
        (5, 150, {}),
        (4, 2, {"grey_pictures": True, "sizes": [(12, 300), (300, 12)]}),
    ],
)
def test_the_whole_way(tmp_path, capsys, count, classes, options):
    root = make_pictures(tmp_path / "own", count, classes=classes, **options)
    names, run = f"{root}/names.txt", root / "run"
    assert main(["data", "check", *data(root), "--classes", names, "-o", f"{root}/s.png"]) == 0
    assert f"{count} pictures with masks, {classes} classes" in capsys.readouterr().out
    arguments = ["train", *data(root), "--classes", names, *SMALL, "--epochs", "2"]
    assert main([*arguments, "--out", str(run)]) == 0
    said = capsys.readouterr().err
    few = "fewer than 5 pictures: those to train on serve for validation, too"
    kept = f"kept for validation: 1 of {count} pictures"
    assert (few if count < 5 else kept) in said
    for name in ("best.pt", "last.pt", "config.json", "split.json", "history.json"):
        assert (run / name).stat().st_size > 0
    for name in ("curves.png", "samples.png"):
        assert min(Image.open(run / name).size) > 100
    with (run / "log.csv").open() as rows:
        assert [row["epoch"] for row in csv.DictReader(rows)] == ["1", "2"]
    _, metadata = checkpoint.load_model(run / "best.pt")
    assert metadata["classes"] == Path(names).read_text().splitlines()
    assert (
        metadata["data"]
        == f"{root}/mask, {classes} classes, {count if count < 5 else count - 1} training images"
    )

    score = ["evaluate", "--weights", f"{run}/best.pt", *data(root)]
    assert main([*score, "--json", f"{root}/score.json"]) == 0
    found = json.loads((root / "score.json").read_text())
    assert 0 <= found["miou"] <= 1
    assert len(found["classes"]) == classes
    assert [p["name"] for p in found["pictures"]] == [f"p{k}" for k in range(count)]
    assert main([*score, "--split", f"{run}/split.json"]) == 0

    (root / "img/broken.jpg").write_text("no picture")
    capsys.readouterr()
    assert main(["segment", f"{root}/img", "--weights", f"{run}/best.pt", "-o", f"{root}/out"]) == 1
    assert "broken.jpg: not an image" in capsys.readouterr().err
    assert sorted(p.name for p in (root / "out").glob("*.png")) == [
        f"p{k}.png" for k in range(count)
    ]
    (root / "img/broken.jpg").unlink()
    scored = ["--predictions", f"{root}/out", *data(root), "--classes", names]
    assert main(["evaluate", *scored, "--json", f"{root}/masks.json"]) == 0
    of_masks = json.loads((root / "masks.json").read_text())
    assert of_masks["confusion_matrix"] == found["confusion_matrix"]
    arguments = [f"{root}/img/p0.png", "--labels", f"{root}/out/p0.png", "-o", f"{root}/crf.png"]
    assert main(["crf", *arguments]) == 0


def test_a_network_learns_what_it_is_shown(tmp_path):
    root = make_pictures(tmp_path / "own", 8, mask=own.binary)
    trainer = trained(config_of(root, epochs=12, lr=0.02, loss="ce+dice"))
    assert trainer.best > 0.8
    assert trainer.history[-1]["loss"] < 0.5 * trainer.history[0]["loss"]


@pytest.mark.parametrize("height", [None, 50])
def test_sizes_are_chosen_by_the_pictures(tmp_path, height):
    root = make_pictures(tmp_path / "own", 3, sizes=[(40, 90), (60, 50), (300, 45)])
    config = Trainer(config_of(root, height=height)).config
    assert config.height == (45 if height is None else 50)
    assert config.crop == (64, 64)
    assert config.class_weights == "none"


def test_losses_of_an_ignored_batch_are_zero(tmp_path):
    root = make_pictures(tmp_path / "own", 4, mask=lambda ids: own.grey(np.full_like(ids, 255)))
    (root / "names.txt").write_text("a\nb\nc\n")
    trainer = trained(config_of(root, loss="ce+focal+ohem"))
    assert [record["loss"] for record in trainer.history] == [0.0, 0.0]
    assert (root / "run/best.pt").exists(), "the score is nan, and the weights are kept"


PARTS = [{"loss": "ce", "class_weights": "median"}, {"loss": "focal"}, {"loss": "0.5*dice+jaccard"}]


@pytest.mark.parametrize("changes", PARTS, ids=lambda changes: changes["loss"])
def test_a_batch_in_parts_is_the_whole_batch(tmp_path, changes):
    """Means are over the pixels of all parts: U-Net without batch norm has the same gradients."""
    root = make_pictures(tmp_path / "own", 8, classes=3)
    options = {"width": 4, "depth": 2, "batch_norm": False}
    config = config_of(root, options=options, optimizer="sgd", lr=0.05, **changes)
    whole = trained(config)
    parts = trained(replace(config, accumulate=4, out=str(root / "parts")))
    same(parts.model.state_dict(), whole.model.state_dict(), rtol=1e-4, atol=1e-6)
    assert parts.history[-1]["loss"] == pytest.approx(whole.history[-1]["loss"], rel=1e-5)


def test_the_average_of_the_weights_is_kept_and_resumed(tmp_path):
    root = make_pictures(tmp_path / "own", 5)
    config = config_of(root, ema=0.5, epochs=3)
    whole = trained(config)
    model, _ = checkpoint.load_model(root / "run/best.pt")
    kept = dict(model.named_parameters())["classifier.weight"]
    average, moving = (dict(m.named_parameters()) for m in (whole.average.module, whole.model))
    assert not torch.equal(average["classifier.weight"], moving["classifier.weight"])
    if whole.history[-1]["miou"] == whole.best:
        same(kept, average["classifier.weight"], rtol=1e-3, atol=1e-4)
    trained(replace(config, epochs=3, out=str(root / "again")))
    first = trained(replace(config, epochs=1, out=str(root / "two"), schedule="constant", warmup=0))
    resumed = Trainer(replace(first.config, epochs=2))
    resumed.resume()
    resumed.run(Never())
    straight = trained(replace(first.config, epochs=2, out=str(root / "straight")))
    same(resumed.average.state_dict(), straight.average.state_dict())


def test_frozen_batch_norms_stay(tmp_path):
    root = make_pictures(tmp_path / "own", 5)
    config = config_of(root, freeze_bn=True)
    before = {k: v.clone() for k, v in Trainer(config).model.state_dict().items()}
    after = trained(config).model.state_dict()
    norms = {n: m for n, m in Trainer(config).model.named_modules() if isinstance(m, BatchNorm2d)}
    frozen = {f"{name}.{key}" for name, norm in norms.items() for key in norm.state_dict()}
    assert frozen
    for key in after:
        assert torch.equal(before[key], after[key]) == (key in frozen), key


def test_gradients_are_clipped(tmp_path):
    root = make_pictures(tmp_path / "own", 5)
    config = config_of(root, epochs=1, optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=1.0)
    config = replace(config, warmup=0.0, schedule="constant", clip=1e-3)
    before = Trainer(config).model.state_dict()
    after = trained(config).model.state_dict()
    names = [k for k, _ in Trainer(replace(config, out="x")).model.named_parameters()]
    moved = torch.stack([(after[k] - before[k]).norm() for k in names]).norm()
    assert moved == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": "ce+ce"}, "loss must be a sum of different ce, dice, focal, jaccard, ohem"),
        ({"schedule": "linear"}, "schedule must be one of constant, cosine, onecycle, poly"),
        ({"fp16": True}, "fp16 needs a GPU, got the device cpu"),
        ({"bf16": True, "fp16": True, "device": "cuda"}, "bf16 and fp16 exclude each other"),
        ({"augment": ("shear=1",)}, "--augment shear=1"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"ema": 1.0}, "ema must be at least 0 and at most 0.99999"),
    ],
)
def test_settings_that_do_not_fit(changes, said):
    with pytest.raises(ValueError, match=said):
        Config(**changes)


def test_a_batch_that_is_less_than_its_parts(tmp_path):
    root = make_pictures(tmp_path / "own", 5)
    with pytest.raises(ValueError, match=r"at least 5 \(accumulate\) pictures for each; got 4"):
        Trainer(config_of(root, accumulate=5))


def test_networks_of_other_packages(tmp_path):
    import_or_skip("segmentation_models_pytorch")
    root = make_pictures(tmp_path / "own", 3)
    config = config_of(root, model="smp:Unet", options={"encoder_name": "resnet18"}, epochs=1)
    trained(config)
    model, metadata = checkpoint.load_model(root / "run/best.pt")
    assert metadata["model"] == "smp:Unet"
    assert model(torch.randn(1, 3, 45, 70)).shape == (1, 2, 45, 70)
    with pytest.raises(ValueError, match=r"smp has no network 'Vnet'; it has .*Unet"):
        Trainer(replace(config, model="smp:Vnet", options={}))


def test_a_package_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    root = make_pictures(tmp_path / "own", 3)
    said = r"networks need segmentation_models_pytorch, .*: pip install segmentation-models-pytorch"
    with pytest.raises(ImportError, match=said):
        Trainer(config_of(root, model="smp:Unet", options={}))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_is_lost_in_a_run_is_named(tmp_path, workers):
    root = make_pictures(tmp_path / "own", 4)
    trainer = Trainer(config_of(root, workers=workers))
    (root / "img/p2.png").unlink()
    with pytest.raises(ImageError, match=r"p2.png: no such file") as error:
        trainer.run(Never())
    assert str(error.value) == f"{root}/img/p2.png: no such file"


def test_other_classes_do_not_resume_a_run(tmp_path):
    root = make_pictures(tmp_path / "own", 5)
    trained(config_of(root, epochs=1))
    (root / "names.txt").write_text("x\ny\n")
    with pytest.raises(ValueError, match="classes class a, class b are now x, y"):
        Trainer(config_of(root)).resume()


def command(root, run, *more):
    arguments = [*data(root), *SMALL, "--option", "dropout=0.5", "--batch-size", "4"]
    return [sys.executable, "-m", "fastseg.train", *arguments, "--out", str(run), *more]


def start(words, **options):
    return subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options
    )


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A run of the same pictures that nothing stops."""
    root = make_pictures(tmp_path_factory.mktemp("whole") / "own", 6)
    run = root / "run"
    subprocess.run(command(root, run, "--epochs", "12"), cwd=ROOT, check=True, capture_output=True)
    return run


@pytest.mark.usefixtures("default_sigint")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_with_workers_goes_on_as_if_nothing_had_been(tmp_path, whole_run, number):
    """Ctrl-C comes to the whole group, the workers too; kill -9 to the run alone."""
    root = make_pictures(tmp_path / "own", 6)
    more = ("--epochs", "12", "--workers", "2")
    stopped = root / "stopped"
    process = start(command(root, stopped, *more), start_new_session=True)
    try:
        wait_for(stopped / "history.json", process)
        if number == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == (-9 if number == signal.SIGKILL else 130), said
    assert "Traceback" not in said
    saved = checkpoint.load(stopped / "last.pt")
    assert 1 <= saved["epoch"] < 12
    again = command(root, stopped, "--epochs", "12", "--workers", "1", "--resume")
    subprocess.run(again, cwd=ROOT, check=True, capture_output=True)
    same(weights(stopped), weights(whole_run))
    for name in ("history.json", "log.csv"):
        assert (stopped / name).read_text() == (whole_run / name).read_text()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_train_as_one(tmp_path, port, accumulate):
    """Batch norms, losses, class weights and scores are those of the whole batch."""
    root = make_pictures(tmp_path / "own", 10, classes=3)
    network = DEFAULT if accumulate == 1 else SMALL
    arguments = [*data(root), *network, "--batch-size", "4", "--epochs", "2", "--optimizer", "sgd"]
    arguments += ["--lr", "0.05", "--loss", "ce+focal+dice+ohem", "--class-weights", "median"]
    if accumulate > 1:  # OHEM chooses its pixels in each part, of which one process has others
        arguments[arguments.index("--loss") + 1] = "ce+focal+dice"
        arguments += ["--accumulate", str(accumulate), "--option", "batch_norm=False"]
    one, two = root / "one", root / "two"
    assert main(["train", *arguments, "--out", str(one)]) == 0
    both = subprocess.run(
        torchrun("fastseg.train", *arguments, "--out", str(two)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,  # processes that wait for each other at the end would wait for ever
    )
    assert both.returncode == 0, both.stderr
    assert len(both.stdout.strip().splitlines()) == 2, "one process speaks"
    same(weights(two), weights(one), rtol=1e-3, atol=2e-4)
    for a, b in zip(
        *(json.loads((run / "history.json").read_text()) for run in (one, two)), strict=True
    ):
        assert a == pytest.approx(b, rel=2e-3)


def test_two_processes_train_with_frozen_batch_norms(tmp_path, port):
    root = make_pictures(tmp_path / "own", 8)
    arguments = [*DEFAULT, "--freeze-bn", "--epochs", "2", "--batch-size", "4"]
    done = subprocess.run(
        torchrun("fastseg.train", *data(root), *arguments, "--out", str(root / "run")),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "FutureWarning" not in done.stderr, done.stderr
    assert checkpoint.load(root / "run/last.pt")["epoch"] == 2


def test_a_killed_process_ends_the_run_with_its_checkpoint_whole(tmp_path, port):
    root = make_pictures(tmp_path / "own", 6)
    run = root / "run"
    arguments = [*data(root), *SMALL, "--batch-size", "4", "--epochs", "100000", "--out", str(run)]
    process = start(torchrun("fastseg.train", *arguments))
    try:
        wait_for(run / "history.json", process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode != 0
    assert "another process of the run has ended" in said or "Signal 15" in said
    assert checkpoint.load(run / "last.pt")["epoch"] >= 1
    checkpoint.load_model(run / "best.pt")

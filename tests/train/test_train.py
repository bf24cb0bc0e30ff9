"""Training: it learns, it stops when asked to, and a resumed run equals one that never stopped."""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from fastseg.cli import train as command
from fastseg.data import CamVid, EvalTransform, NotCamVidError
from fastseg.train import Config, Trainer
from fastseg.train.__main__ import main
from fastseg.train.evaluate import evaluate, scores
from fastseg.train.evaluate import main as evaluate_main
from fastseg.train.interrupt import Interrupted, StopSignal
from fastseg.train.logs import RunLog
from fastseg.train.randomness import seed_at
from fastseg.zoo import checkpoint
from tests.train.foreign_masks import KINDS, make_foreign
from tests.train.synthetic_camvid import make_camvid

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data" / "camvid"


def make_config(folder):
    return Config(
        data=str(make_camvid(folder / "camvid")),
        out=str(folder / "run"),
        options={"width": 4, "kernel_size": 3},
        backend="torch",
        epochs=3,
        batch_size=2,
        height=48,
        crop=(32, 48),
        eval_every=2,
    )


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path)


class StopAfter:
    """A stop signal that comes at the given check."""

    def __init__(self, checks):
        self.checks = checks

    def check(self):
        self.checks -= 1
        if self.checks == 0:
            raise Interrupted("SIGTERM")


def arguments(config):
    return [
        f"--data={config.data}",
        f"--out={config.out}",
        "--backend=torch",
        "--option=width=4",
        "--option=kernel_size=3",
        "--batch-size=2",
        "--height=48",
        "--crop",
        "32",
        "48",
        f"--epochs={config.epochs}",
        f"--eval-every={config.eval_every}",
    ]


def trained(config, checks=-1):
    trainer = Trainer(config)
    trainer.run(StopAfter(checks))
    return trainer


def test_two_images_are_learned(config, tmp_path):
    data = str(make_camvid(tmp_path / "two", images=2))
    trainer = trained(
        replace(config, data=data, options={"width": 16}, epochs=40, lr=0.01, eval_every=40)
    )
    losses = [record["loss"] for record in trainer.history]
    assert sum(losses[-5:]) / 5 < 0.5 * losses[0]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A run of the settings of `config` that nothing stops: its history and its weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the runs that are held against it; it is made before they begin
    trainer = trained(make_config(tmp_path_factory.mktemp("whole")))
    torch.set_num_threads(threads)
    return trainer.history, trainer.model.state_dict()


# A run of 3 epochs of 3 steps checks for a signal after each step and, after epochs 2 and 3, after
# each of 6 validation images: steps 1-6, evaluation 7-12, steps 13-15, evaluation 16-21.
@pytest.mark.parametrize("checks", [1, 3, 5, 6, 9, 14, 21])
@pytest.mark.usefixtures("one_thread")
def test_a_resumed_run_equals_one_that_never_stopped(config, whole_run, checks):
    history, weights = whole_run
    with pytest.raises(Interrupted):
        trained(config, checks)
    torch.manual_seed(123)
    resumed = Trainer(config)
    resumed.resume()
    assert resumed.epoch * 3 + resumed.step == min(checks, 6) + min(max(checks - 12, 0), 3)
    resumed.run(StopAfter(-1))
    assert resumed.history == history
    assert len(resumed.history) == 3
    torch.testing.assert_close(resumed.model.state_dict(), weights, rtol=0, atol=0)


# Small networks with dropout, alone and with an auxiliary head that has its own; the last has
# parameters of a CRF.
WITH_DROPOUT = {
    "deeplabv3": {
        "backbone": "mobilenet_v2",
        "backbone_options": {"width_mult": 0.25},
        "aux": True,
    },
    "fcn": {"backbone_options": {"width": 4, "layers": (1, 1, 1, 1)}, "aux": True},
    "fcn8s": {"width": 2, "fc_channels": 8},
    "unet": {"width": 4, "dropout": 0.5},
    "segnet_basic": {"width": 4, "kernel_size": 3, "aux": True, "crf": "layer"},
}


def with_dropout(config, name, **changes):
    options = {**WITH_DROPOUT[name]}
    if name == "deeplabv3":
        options |= {"aspp_channels": 8, "output_stride": 16}
    return replace(config, model=name, options=options, backend="fastseg", **changes)


def same_weights(a, b):
    torch.testing.assert_close(a.model.state_dict(), b.model.state_dict(), rtol=0, atol=0)
    return a.history == b.history


@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_a_resumed_run_draws_the_numbers_of_one_that_never_stopped(config, tmp_path, name):
    """Stopped after its first step, in an epoch, at its end and while evaluating; each time with
    other numbers drawn in between.
    """
    config = with_dropout(config, name, epochs=2, eval_every=1)
    expected = trained(config)
    config = replace(config, out=str(tmp_path / "stopped"))
    # A run checks after its 3 steps and, while evaluating, after each of 6 images.
    checks = 1
    while True:
        torch.manual_seed(checks)
        trainer = Trainer(config)
        if (trainer.out / "last.pt").exists():
            trainer.resume()
        torch.rand(checks)
        try:
            trainer.run(StopAfter(checks))
            break
        except Interrupted:
            checks += 2
    assert checks > 5
    assert same_weights(trainer, expected)
    assert trainer.best == expected.best


def test_dropout_differs_from_step_to_step(config):
    trainer = Trainer(with_dropout(config, "unet"))
    image, label = (torch.stack((x, x)) for x in trainer.train_set[0])
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0)
    trainer.optimizer.param_groups[0]["lr_factor"] = 0.0
    losses = []
    for trainer.epoch, trainer.step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        losses.append(trainer._train_step(image, label))
    assert losses[0] == losses[3]
    assert len(set(losses)) == 3


def test_evaluations_in_between_change_no_number(config, tmp_path):
    config = with_dropout(config, "unet", epochs=2, eval_every=100)
    rare = trained(config)
    often = trained(replace(config, eval_every=1, out=str(tmp_path / "often")))
    torch.testing.assert_close(often.model.state_dict(), rare.model.state_dict(), rtol=0, atol=0)


def test_evaluation_draws_no_numbers_of_its_caller(config):
    trainer = Trainer(config)
    before = torch.get_rng_state()
    evaluate(trainer.model, trainer.val_set)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_default_generator_is_seeded_by_the_position():
    def numbers(*position):
        seed_at(*position)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert numbers(1, 2, 3) == numbers(1, 2, 3)
    different = [numbers(*p) for p in ((1, 2, 3), (1, 3, 2), (1, 2, 4), (2, 2, 3), (1,), (1, 2))]
    assert all(len(set(n)) == len(different) for n in zip(*different, strict=True))


def test_another_number_of_threads_resumes_the_same_run(config, tmp_path):
    config = with_dropout(config, "unet", epochs=2)
    expected = trained(config)
    config = replace(config, out=str(tmp_path / "stopped"))
    with pytest.raises(Interrupted):
        trained(config, 4)
    torch.set_num_threads(1)
    resumed = Trainer(config)
    resumed.resume()
    resumed.run(StopAfter(-1))
    torch.testing.assert_close(
        resumed.model.state_dict(), expected.model.state_dict(), rtol=1e-3, atol=1e-4
    )


def test_other_data_do_not_resume_a_run(config, tmp_path):
    trained(replace(config, epochs=1))
    more = str(make_camvid(tmp_path / "more", images=8))
    trainer = Trainer(replace(config, data=more, epochs=2))
    with pytest.raises(ValueError, match="other settings: 6 training images are now 8"):
        trainer.resume()


def test_other_pictures_do_not_resume_a_run(config):
    """As many as before, but of other names: what was to validate with has been trained on."""
    trainer = trained(replace(config, epochs=1))
    saved = torch.load(trainer.out / "last.pt", weights_only=True)
    for part, kind in (("train", "training"), ("val", "validation")):
        first, *others = saved["pictures"][part]
        pictures = saved["pictures"] | {part: ["another", *others]}
        torch.save(saved | {"pictures": pictures}, trainer.out / "last.pt")
        with pytest.raises(ValueError, match=f"settings: {kind} image another is now {first}"):
            Trainer(replace(config, epochs=2)).resume()


def test_settings_resume_as_a_file_of_them_has_them(config):
    """Tuples among the options are lists in config.json."""
    config = replace(config, model="deeplabv3", epochs=1, crop=(32, 32))
    options = {"backbone_options": {"width": 4, "layers": (1, 1, 1, 1)}, "atrous_rates": (1, 2)}
    trained(replace(config, options=options | {"aspp_channels": 8}))
    listed = {"backbone_options": {"width": 4, "layers": [1] * 4}, "atrous_rates": [1, 2]}
    again = Trainer(replace(config, options=listed | {"aspp_channels": 8}))
    again.resume()
    assert again.notes[-1] == "the run has ended after 1 epochs, and epochs is 1"


def test_a_signal_that_is_ignored_stays_so():
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            stop.check()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_score_that_is_nan_is_null_in_json(tmp_path):
    record = {"epoch": 1, "miou": float("nan"), "loss": 0.5}
    record["more"] = {"iou": [float("nan"), 1.0]}
    RunLog(tmp_path).write([record])
    text = (tmp_path / "history.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == [
        {"epoch": 1, "miou": None, "loss": 0.5, "more": {"iou": [None, 1.0]}}
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_other_classes_are_refused_before_anything_is_trained(config, tmp_path, kind):
    data = make_foreign(tmp_path / "own", kind)
    with pytest.raises(NotCamVidError, match=r"own has CamVid's folders, but is not CamVid"):
        Trainer(replace(config, data=str(data)))
    assert not Path(config.out).exists()


def test_a_setting_out_of_range_is_named(config):
    for changes in ({"epochs": 0}, {"lr": float("nan")}, {"crop": (0, 4)}, {"seed": -1}):
        (name,) = changes
        with pytest.raises(ValueError, match=f"{name} must be at least"):
            replace(config, **changes)


def test_crops_that_a_model_cannot_take_are_refused(config):
    with pytest.raises(ValueError, match=r"segnet_basic cannot .* 2 crops of 8x8: .* 16x16"):
        Trainer(replace(config, crop=(8, 8)))
    with pytest.raises(ValueError, match=r"unet cannot .* crops of 192x192: its scores are 4x4"):
        Trainer(replace(config, model="unet", options={"padding": "valid"}, crop=(192, 192)))


def test_every_epoch_has_its_own_augmentation(config):
    assert trained(config).train_set.epoch == 2


def test_balance_is_a_power_of_the_median_frequency_weights(config):
    whole = Trainer(config).class_weights
    assert whole.max() > 1.5 * whole.min()
    torch.testing.assert_close(Trainer(replace(config, balance=0.5)).class_weights ** 2, whole)
    assert torch.equal(Trainer(replace(config, balance=0.0)).class_weights, torch.ones(11))


def test_both_backends_train_alike(config, tmp_path):
    expected = trained(config).history
    got = trained(replace(config, backend="fastseg", out=str(tmp_path / "fastseg"))).history
    for a, b in zip(got, expected, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_a_stop_signal_can_come_twice(default_sigint):
    with StopSignal() as stop:
        stop.check()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted, match="SIGINT"):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is default_sigint


@pytest.mark.usefixtures("default_sigint")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_program_at_a_step_with_its_state_saved(config, number):
    config = replace(config, epochs=100_000)
    command = [sys.executable, "-m", "fastseg.train", *arguments(config), "--threads=1"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (Path(config.out) / "history.json").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert f"{number.name}: saved; go on with --resume" in errors
    resumed = Trainer(config)
    resumed.resume()
    assert len(resumed.history) == resumed.epoch >= 1


def test_the_best_weights_are_a_model_with_the_score_it_was_chosen_for(config):
    trainer = trained(config)
    model, metadata = checkpoint.load_model(Path(config.out) / "best.pt", backend="torch")
    assert (
        metadata["val"]["miou"]
        == trainer.best
        == max(record["miou"] for record in trainer.history if "miou" in record)
    )
    assert metadata["options"] == {"width": 4, "kernel_size": 3}
    matrix = evaluate(model, CamVid(config.data, "val", EvalTransform(metadata["short_side"])))
    assert scores(matrix)["miou"] == pytest.approx(trainer.best, abs=0.01)  # fp16 weights


def deeplab(config, **changes):
    options = {"backbone": "mobilenet_v2", "backbone_options": {"width_mult": 0.25}}
    return replace(config, model="deeplabv3plus", options=options, **changes)


def test_a_backbone_starts_from_a_checkpoint_and_learns_at_a_rate_of_its_own(config, tmp_path):
    torch.manual_seed(1)
    backbone = Trainer(deeplab(config)).model.backbone.state_dict()
    torch.save(backbone, tmp_path / "imagenet.pth")
    changes = {"backbone_weights": str(tmp_path / "imagenet.pth"), "seed": 2}
    trainer = Trainer(deeplab(config, backbone_lr=0.0, weight_decay=0.0, **changes))
    before = {key: value.clone() for key, value in trainer.model.named_parameters()}
    torch.testing.assert_close(trainer.model.backbone.state_dict(), backbone, rtol=0, atol=0)
    image, label = trainer.train_set[0]
    trainer._train_step(torch.stack((image, image)), torch.stack((label, label)))
    changed = {k for k, v in trainer.model.named_parameters() if not torch.equal(v, before[k])}
    assert "classifier.score.weight" in changed
    assert not any(key.startswith("backbone.") for key in changed)
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    assert len(set(map(id, parameters))) == len(parameters) == len(before)


def test_an_auxiliary_head_is_trained_too(config):
    options = deeplab(config).options | {"aux": True}
    trainer = trained(replace(deeplab(config), options=options, epochs=1))
    assert "miou" in trainer.history[0]
    assert all(p.grad.abs().max() > 0 for p in trainer.model.aux_classifier.parameters())


def test_a_rate_of_its_own_needs_a_backbone(config):
    with pytest.raises(ValueError, match="backbone_lr must be 1: a SegNet has no backbone"):
        Trainer(replace(config, backbone_lr=0.1))


def test_the_rate_warms_up_and_falls_to_zero(config):
    trainer = Trainer(replace(config, epochs=100, lr=0.5))
    rates = []
    for step in range(300):
        trainer.epoch, trainer.step = divmod(step, trainer.steps)
        rates.append(trainer.learning_rate())
    peak = rates.index(max(rates))
    assert peak in (14, 15)  # 5 % of 300 steps
    assert rates[peak] == pytest.approx(0.5)
    assert rates[0] == pytest.approx(0.5 / 15)
    assert rates[157] == pytest.approx(0.25, rel=0.02)  # half way down
    assert all(a > b for a, b in pairwise(rates[15:]))
    assert 0 < rates[-1] < 1e-4


def test_a_run_may_get_more_epochs_but_no_other_settings_on_resume(config):
    trained(replace(config, epochs=1))
    trainer = Trainer(config)
    trainer.resume()
    trainer.run(StopAfter(-1))
    assert [record["epoch"] for record in trainer.history] == [1, 2, 3]
    with pytest.raises(ValueError, match=r"other settings: lr 0\.\d+ is now 0\.5, seed 0 is now 1"):
        Trainer(replace(config, lr=0.5, seed=1)).resume()


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(config):
    trainer = Trainer(replace(config, lr=1e30))
    with pytest.raises(FloatingPointError, match=r"the loss is \w+ at epoch 1, step \d"):
        trainer.run(StopAfter(-1))
    assert not (Path(config.out) / "last.pt").exists()


def test_command_line(config, capsys):
    assert main([*arguments(config), "--lr=0.01", "--bf16"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert "miou" in records[2]
    assert json.loads((Path(config.out) / "history.json").read_text()) == records

    assert main([*arguments(config), "--lr=0.01", "--bf16"]) == 2
    assert "holds a run; give --resume or another --out" in capsys.readouterr().err
    assert main([*arguments(config), "--lr=0.01", "--bf16", "--resume"]) == 0

    weights = f"--weights={config.out}/best.pt"
    evaluate_main([weights, f"--data={config.data}", "--split=test", "--backend=torch"])
    assert "miou" in capsys.readouterr().out


def test_command_line_reports_what_it_cannot_use(config, capsys):
    assert main(["--data=nowhere", f"--out={config.out}", "--backend=torch"]) == 2
    assert "error: nowhere is not a folder" in capsys.readouterr().err
    assert main([*arguments(config), "--resume"]) == 2
    assert "error: no checkpoint at" in capsys.readouterr().err
    assert main([*arguments(config), "--option=wide=3"]) == 2
    assert "unexpected keyword argument 'wide'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments(config), "--option=width"])
    assert "'width' is not NAME=VALUE" in capsys.readouterr().err


def test_defaults_of_the_command_line_are_those_of_the_config():
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    options = parser.parse_args(["--data=a", "--out=b"])
    assert command.config_of(options) == Config(data="a", out="b")
    assert not options.resume

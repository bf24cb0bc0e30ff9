"""An optimised model in mode "infer" refuses to be trained, wholly, wherever it is in another."""

import copy
import pickle

import pytest
import torch
from torch import nn

import fastseg
from tests.optimize.blocks import ASPP, BasicBlock
from tests.optimize.optimize_cases import close, run
from tests.zoo.other_models import with_statistics


class Careful(nn.Module):
    """A wrapper with a train() of its own."""

    def __init__(self, model):
        super().__init__()
        self.first, self.model = nn.Dropout(), model

    def train(self, mode=True):
        super().train(mode)
        self.first.eval()
        return self


def optimised() -> nn.Sequential:
    model = with_statistics(nn.Sequential(nn.Dropout(), BasicBlock(4, 8), ASPP(8, 8), nn.Dropout()))
    fastseg.optimize_(model, mode="infer")
    return model


WRAPPERS = {
    "none": lambda m: m,
    "first": lambda m: nn.Sequential(m, nn.Dropout()),
    "last": lambda m: nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), m)),
    "in evaluation": lambda m: nn.Sequential(nn.Dropout(), m).eval(),
    "mixed": lambda m: nn.Sequential(nn.Dropout().eval(), nn.Dropout(), m),
    "list": lambda m: nn.ModuleList([nn.Dropout(), m]),
    "its own train()": Careful,
    "a copy": copy.deepcopy,
    "from a file": lambda m: pickle.loads(pickle.dumps(m)),
}


def flags(model: nn.Module) -> list[bool]:
    return [m.training for m in model.modules()]


@pytest.mark.parametrize("name", WRAPPERS)
def test_no_flag_changes(name):
    wrapper = WRAPPERS[name](optimised())
    before = flags(wrapper)
    refused = 0
    for module in wrapper.modules():
        has_batch_norm = any(isinstance(m, nn.BatchNorm2d) for m in module.modules())
        if has_batch_norm:
            refused += 1
            with pytest.raises(RuntimeError, match="restore_"):
                module.train()
            assert flags(wrapper) == before
    assert refused > 5
    wrapper.eval()
    assert not any(flags(wrapper))
    fastseg.restore_(wrapper)
    wrapper.train()
    assert all(m.training for m in wrapper.modules() if isinstance(m, nn.BatchNorm2d))


def test_what_holds_none_is_trained():
    model = optimised()
    model[0].train()
    assert flags(model[0]) == [True]
    other = nn.Sequential(nn.BatchNorm2d(4)).eval()
    other.train()
    assert all(flags(other))
    with pytest.raises(ValueError, match="boolean"):
        model.train(1)


def test_a_batch_norm_put_into_training_takes_the_batch_s_statistics():
    model = with_statistics(BasicBlock(4, 8))
    ours, x = copy.deepcopy(model), torch.randn(4, 4, 8, 8)
    fastseg.optimize_(ours, mode="infer")
    for m in (model, ours):
        m.bn1.training = True
    close(run(ours, x), run(model, x))
    close(ours.bn1.running_mean, model.bn1.running_mean)

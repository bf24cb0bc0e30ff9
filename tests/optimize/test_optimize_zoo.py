"""Models of torchvision, segmentation_models_pytorch and timm, before and after, if installed."""

import copy

import pytest
import torch

import fastseg
from tests.zoo import other_models as zoo

# Each is built by others' code: their smaller encoders keep the time short.
FAST = {
    "deeplabv3_resnet50": (64, "fastseg.aspp"),
    "deeplabv3_mobilenet_v3_large": (64, "fastseg.aspp"),
    "lraspp_mobilenet_v3_large": (64, "conv + batch norm + hardswish"),
    "DeepLabV3": (64, "fastseg.aspp"),
    "DeepLabV3Plus": (64, "fastseg.aspp"),
    "Unet": (64, "conv + batch norm + residual + relu"),
    "PAN": (128, "conv + batch norm + residual + relu"),
    "resnet50 os16": (64, "conv + batch norm + residual + silu"),
    "resnet50 os8": (64, "conv + batch norm + residual + silu"),
    "mobilenetv3_large_100 os16": (64, "conv + batch norm + hardswish"),
    "efficientnet_b0": (64, "conv + batch norm + silu"),
}


def maps(y) -> list[torch.Tensor]:
    if isinstance(y, torch.Tensor):
        return [y]
    return list(y.values() if isinstance(y, dict) else y)


@pytest.mark.parametrize("name", FAST)
def test_same_outputs_and_gradients(name):
    side, detail = FAST[name]
    model = zoo.build(name)
    x = torch.randn(1, 3, side, side)
    with torch.no_grad():
        expected = maps(model(x))
    for mode in ("infer", "train"):
        ours = copy.deepcopy(model)
        report = fastseg.optimize_(ours, mode=mode)
        computed = report.swapped if mode == "infer" else report.swapped + report.in_evaluation
        assert detail in [entry.detail for entry in computed]
        assert mode == "train" or report.left == []
        assert list(ours.state_dict()) == list(model.state_dict())
        with torch.no_grad():
            for y, before in zip(maps(ours(x)), expected, strict=True):
                assert (y - before).abs().max() < 1e-4 * before.abs().max()
    gradients = []
    for m in (model, ours):
        torch.manual_seed(0)
        sum(y.square().mean() for y in maps(m(x))).backward()
        gradients.append([p.grad for p in m.parameters() if p.grad is not None])
    for actual, reference in zip(*gradients[::-1], strict=True):
        difference = (actual - reference).norm() / reference.norm().clamp_min(1e-6)
        assert difference < 1e-4
    fastseg.restore_(ours)
    with torch.no_grad():
        assert all(map(torch.equal, maps(ours(x)), expected))

"""An optimised model is compiled, exported, copied, pickled, wrapped and checkpointed as any."""

import copy
import io
import pickle
import warnings

import pytest
import torch
import torch._inductor.config
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastseg
from tests.optimize.blocks import ASPP, BasicBlock, InvertedResidual
from tests.optimize.optimize_cases import close
from tests.process_groups import destroy_process_group
from tests.zoo.other_models import with_statistics


def small_model() -> nn.Sequential:
    return with_statistics(
        nn.Sequential(BasicBlock(4, 32, dilation=2), InvertedResidual(32, 40), ASPP(32, 8))
    )


@pytest.fixture(params=["train", "infer"])
def models(request):
    """The model, the same optimised, an input and the output."""
    model = small_model()
    ours = copy.deepcopy(model)
    fastseg.optimize_(ours, mode=request.param)
    x = torch.randn(2, 4, 12, 16)
    with torch.no_grad():
        yield model, ours, x, model(x)


def test_compile_without_a_warning(models, monkeypatch):
    """Such as that of a cache, whose function Dynamo would look into."""
    _, ours, x, expected = models
    torch._dynamo.reset()
    monkeypatch.setattr("torch._dynamo.utils.warn_once_cache", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        y = torch.compile(ours, fullgraph=True, backend="aot_eager")(x)
    close(y, expected)


@pytest.mark.parametrize("freezing", [False, True])
def test_a_compiler_that_freezes_keeps_what_it_fuses_as_fast(freezing):
    """1x1 and plain depthwise convolutions; without freezing all are fastseg's."""
    model = with_statistics(nn.Sequential(BasicBlock(32, 32, dilation=2), InvertedResidual(32, 40)))
    ours = copy.deepcopy(model)
    fastseg.optimize_(ours, mode="infer")
    x = torch.randn(2, 32, 12, 16)
    found = []

    def backend(graph: torch.fx.GraphModule, inputs):
        found.extend(str(n.target) for n in graph.graph.nodes if n.op == "call_function")
        return graph

    torch._dynamo.reset()
    with torch.no_grad(), torch._inductor.config.patch(freezing=freezing):
        close(torch.compile(ours, fullgraph=True, backend=backend)(x), model(x))
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    kept = [m for m in convs if m.kernel_size == (3, 3) and (m.groups == 1 or m.dilation > (1, 1))]
    assert 0 < len(kept) < len(convs)
    counts = [sum(name in t for t in found) for name in ("fastseg.atrous_conv2d", "conv2d")]
    assert counts == [len(kept if freezing else convs), len(convs)]


def test_export(models):
    _, ours, x, expected = models
    n, h = torch.export.Dim("n"), torch.export.Dim("h", min=8, max=64)
    program = torch.export.export(ours, (x,), dynamic_shapes=({0: n, 2: h},))
    close(program.module()(x), expected)
    close(program.module()(x[:1, :, :9].contiguous()), ours(x[:1, :, :9].contiguous()))


def test_fx(models):
    _, ours, x, expected = models
    traced = torch.fx.symbolic_trace(ours)
    close(traced(x), expected)
    names = [node.name for node in traced.graph.nodes]
    assert any("conv_bn_act" in name for name in names)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies(models, how):
    model, ours, x, expected = models
    if how == "deepcopy":
        twin = copy.deepcopy(ours)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(ours))
    else:
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    for parameter in ours.parameters():
        parameter.zero_()  # the twin has its own
    close(twin(x), expected)
    assert [*map(type, twin.modules())] == [*map(type, ours.modules())]
    fastseg.restore_(twin)
    assert [*map(type, twin.modules())] == [*map(type, model.modules())]
    close(twin(x), expected)


def test_state_dict_goes_both_ways(models):
    model, ours, x, _ = models
    other = small_model()
    ours.load_state_dict(other.state_dict())
    close(ours(x), other(x))
    model.load_state_dict(ours.state_dict())
    close(model(x), other(x))


def test_autocast_and_channels_last(models):
    model, ours, x, expected = models
    with torch.autocast("cpu", torch.bfloat16):
        y, plain = ours(x), model(x)
    assert y.dtype == torch.bfloat16
    worst = (plain.float() - expected).abs().max()
    assert (y.float() - expected).abs().max() <= 2 * worst
    last = x.contiguous(memory_format=torch.channels_last)
    close(ours(last), expected)
    assert ours(last).is_contiguous(memory_format=torch.channels_last)


def gradients(model: nn.Module, forward, x) -> list[torch.Tensor]:
    model.zero_grad()
    y = forward(x.clone().requires_grad_())
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return [p.grad / p.grad.abs().max() for p in model.parameters()]


@pytest.fixture
def trained():
    """The model in evaluation, with gradients: batch statistics would double all rounding."""
    model = small_model()
    ours = copy.deepcopy(model)
    fastseg.optimize_(ours, mode="train")
    return model, ours, torch.randn(2, 4, 12, 16)


def test_checkpointing(trained):
    model, ours, x = trained

    def forward(x):
        x = checkpoint(ours[0], x, use_reentrant=False)
        return ours[2](checkpoint(ours[1], x, use_reentrant=False))

    for actual, expected in zip(
        gradients(ours, forward, x), gradients(model, model, x), strict=True
    ):
        close(actual, expected, 1e-4)


def test_compiled_training(trained):
    model, ours, x = trained
    model.train(), ours.train()
    torch._dynamo.reset()
    compiled = torch.compile(ours[0], fullgraph=True, backend="aot_eager")
    for actual, expected in zip(
        gradients(ours[0], compiled, x), gradients(model[0], model[0], x), strict=True
    ):
        close(actual, expected, 1e-3)


def test_distributed_data_parallel(trained, tmp_path):
    model, ours, x = trained
    dist.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/ddp")
    try:
        wrapped = nn.parallel.DistributedDataParallel(ours)
        for actual, expected in zip(
            gradients(ours, wrapped, x), gradients(model, model, x), strict=True
        ):
            close(actual, expected, 1e-4)
    finally:
        destroy_process_group()

"""An optimised model under fully_shard (FSDP2), on the CPU with gloo: as before it was sharded."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import fastseg
from tests.optimize.blocks import ASPP, BasicBlock, InvertedResidual
from tests.optimize.optimize_cases import close
from tests.process_groups import destroy_process_group
from tests.zoo.other_models import with_statistics

fsdp = pytest.importorskip("torch.distributed.fsdp")
pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch.distributed, gloo"
)


def network() -> nn.Sequential:
    """The second convolution is Winograd's, whose weights are prepared and kept."""
    torch.manual_seed(0)
    return with_statistics(
        nn.Sequential(BasicBlock(4, 64, dilation=2), InvertedResidual(64, 80), ASPP(64, 8))
    )


def shard(model: nn.Sequential, inner=()) -> nn.Sequential:
    """Block by block, and before them what is in a block."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for name in (*inner, "0", "1", "2", ""):
        fsdp.fully_shard(model.get_submodule(name), mesh=mesh)
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    y = model(x)
    (y * torch.linspace(-1, 1, y[0].numel()).view_as(y[0])).sum().div(len(x)).backward()
    optimizer.step()
    optimizer.zero_grad()


def evaluate(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x)


def check_training(ours: nn.Sequential, batch_statistics: bool) -> None:
    """Ours, sharded, goes the way of one that is not; evaluation in between sees no old weights."""
    plain, x = network(), torch.randn(4, 4, 24, 20)
    fastseg.optimize_(plain)
    part = x.chunk(dist.get_world_size())[dist.get_rank()]
    steps = [torch.optim.SGD(m.parameters(), 1e-3) for m in (plain, ours)]
    previous = None
    for _ in range(2):
        plain.train(batch_statistics), ours.train(batch_statistics)
        step(plain, steps[0], x)
        step(ours, steps[1], part)
        plain.eval(), ours.eval()
        y = evaluate(plain, x)
        close(evaluate(ours, x), y)
        assert previous is None or not torch.allclose(y, previous, rtol=1e-4, atol=1e-4)
        previous = y
    state = {name: p.full_tensor() for name, p in ours.named_parameters()}
    assert state.keys() == dict(plain.named_parameters()).keys()
    for name, p in plain.named_parameters():
        if dist.get_world_size() == 1:
            assert torch.equal(state[name], p)
        close(state[name], p)


def sharded_after() -> nn.Sequential:
    ours = network()
    fastseg.optimize_(ours)
    return shard(ours)


def sharded_before() -> nn.Sequential:
    ours = shard(network())
    report = fastseg.optimize_(ours)
    assert "fastseg.aspp" in [entry.detail for entry in report.swapped]
    return ours


def layers_sharded_on_their_own() -> nn.Sequential:
    ours = network()
    fastseg.optimize_(ours)
    return shard(ours, ("0.conv2", "1.conv.0.1", "2.convs.1", "2.project.0"))


def check_inference(sharded_first: bool, inner=()) -> None:
    model, x = network(), torch.randn(2, 4, 24, 20)
    expected, ours = evaluate(model, x), copy.deepcopy(model)
    if sharded_first:
        shard(ours, inner)
    fastseg.optimize_(ours, mode="infer")
    if not sharded_first:
        shard(ours, inner)
    for _ in range(2):
        close(evaluate(ours, x), expected)


def check_restore() -> None:
    model, x = network(), torch.randn(2, 4, 24, 20)
    expected, plain = evaluate(model, x), shard(copy.deepcopy(model))
    for ours in (sharded_after(), sharded_before()):
        fastseg.restore_(ours)
        assert [type(m).__name__ for m in ours.modules()] == [
            type(m).__name__ for m in plain.modules()
        ]
        assert isinstance(ours[2], fsdp.FSDPModule)
        assert isinstance(ours[2], ASPP)
        assert torch.equal(evaluate(ours, x), expected)


def check_all(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", rank=rank, world_size=world_size, init_method=f"file://{folder}/{world_size}"
    )
    try:
        for build in (sharded_after, sharded_before, layers_sharded_on_their_own):
            check_training(build(), batch_statistics=world_size == 1)
        check_inference(sharded_first=False)
        check_inference(sharded_first=True)
        check_inference(sharded_first=False, inner=("0.conv2", "0.bn2", "2.convs.1"))
        check_restore()
        dist.barrier()  # or the first to end would close what the other still reads from
    finally:
        destroy_process_group()


def test_one_process(tmp_path):
    check_all(0, 1, str(tmp_path))


def test_two_processes_with_half_the_batch_each(tmp_path):
    mp.spawn(check_all, (2, str(tmp_path)), nprocs=2)

"""An optimised model goes through torch.export and AOTInductor into a file that runs elsewhere."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

import fastseg
from tests.optimize.blocks import ASPP, BasicBlock, SegNet
from tests.optimize.optimize_cases import close
from tests.zoo.other_models import with_statistics

LOAD = """
import sys
import torch, fastseg
package, inputs, outputs = sys.argv[1:]
model = torch._inductor.aoti_load_package(package)
torch.save([model(x) for x in torch.load(inputs)], outputs)
"""
QUICK = {"aot_inductor.compile_wrapper_opt_level": "O0"}  # of the file's code that calls the ops


class Network(nn.Module):
    """Pooling and unpooling, a residual block with atrous convolution, ASPP, a dense CRF."""

    def __init__(self):
        super().__init__()
        self.pooled = SegNet(5, 8)
        self.block = BasicBlock(5, 32, dilation=2)
        self.aspp = ASPP(32, 4)
        self.crf = fastseg.nn.DenseCRF(num_labels=4, iterations=2)

    def forward(self, x):
        return self.crf(-self.aspp(self.block(self.pooled(x))), 40 * x)


class Both(nn.Module):
    """The network in each mode: a file of both is compiled in little more time than one."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.train_mode, self.infer_mode = copy.deepcopy(network), copy.deepcopy(network)

    def forward(self, x):
        return self.train_mode(x), self.infer_mode(x)


def test_the_file_runs_in_another_process(tmp_path):
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("AOTInductor needs a C++ compiler")
    network = with_statistics(Network())
    both = Both(network)
    fastseg.optimize_(both.train_mode, mode="train")
    fastseg.optimize_(both.infer_mode, mode="infer")
    inputs = [torch.randn(2, 3, 16, 20), torch.randn(3, 3, 16, 20)]
    package, xs, ys = (str(tmp_path / name) for name in ("model.pt2", "inputs.pt", "outputs.pt"))
    torch.save(inputs, xs)
    with torch.no_grad():
        expected = [network(x) for x in inputs]
        program = torch.export.export(
            both, (inputs[0],), dynamic_shapes=({0: torch.export.Dim("n", max=8)},)
        )
        ops = {str(node.target) for node in program.graph.nodes}
        torch._inductor.aoti_compile_and_package(
            program, package_path=package, inductor_configs=QUICK
        )
    called = ("atrous_conv2d", "aspp", "max_pool2d", "max_unpool2d", "mean_field")
    assert {f"fastseg.{name}.default" for name in called} <= ops
    done = subprocess.run(
        [sys.executable, "-c", LOAD, package, xs, ys], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for outputs, y in zip(torch.load(ys), expected, strict=True):
        for actual in outputs:
            close(actual, y)

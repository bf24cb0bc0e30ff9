"""Processes that fork, also while other threads compute: children compute, too, and none hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastseg._core.library import cpu_kernel

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

# A thread works without a pause while the main thread forks; each child works once. Children have
# one thread of torch's: after a fork GNU's OpenMP hangs where it has had more, in any op of torch.
# The kinds of work come one after the other, for to import torch takes as long as most forks.
FORKS = """
import faulthandler, json, os, signal, sys, tempfile, threading, time
import numpy as np, torch, fastseg
import fastseg.compat.pydensecrf as densecrf

torch.manual_seed(0)
torch.set_num_threads(1)
FORKS, SECONDS = 150, 60  # machines of others may stand still for a while
TRACE = tempfile.TemporaryFile("w+")
faulthandler.enable(TRACE)

def convolution():
    x, weight = torch.randn(1, 32, 24, 24), torch.randn(32, 32, 3, 3)
    return lambda: fastseg.atrous_conv2d(x, weight)

def changed_weights():
    x, weight = torch.randn(1, 16, 8, 8), torch.randn(16, 16, 3, 3)
    def work():
        weight.data.mul_(1)
        return fastseg.atrous_conv2d(x, weight.clone())
    return work

def large_outputs():
    x = torch.randn(1, 64, 120, 160)  # of the size that memory is kept for
    def work():
        values, codes = fastseg.max_pool2d(x, 2)
        return fastseg.max_unpool2d(values, codes, 2, output_size=x.shape)
    return work

def module():
    model = fastseg.nn.AtrousConvBNAct(8, 8).eval()
    x = torch.randn(1, 8, 12, 12)
    return torch.no_grad()(lambda: model(x))

def dense_crf():
    unary, image = torch.randn(1, 3, 20, 24), torch.rand(1, 3, 20, 24) * 255
    return lambda: fastseg.dense_crf(unary, image, iterations=2)

def pydensecrf():
    image = (np.random.rand(40, 50, 3) * 255).astype(np.uint8)
    unary = np.random.rand(3, 2000).astype(np.float32)
    def work():
        crf = densecrf.DenseCRF2D(50, 40, 3)
        crf.setUnaryEnergy(unary)
        crf.addPairwiseBilateral(sxy=20, srgb=13, rgbim=image, compat=10)
        return torch.from_numpy(np.array(crf.inference(2)))
    return work

def outcomes(work):
    expected = work()
    stop = threading.Event()

    def loop():
        while not stop.is_set():
            work()

    thread = threading.Thread(target=loop)
    thread.start()
    found = set()
    for _ in range(FORKS):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if torch.equal(work(), expected) else 3
            finally:
                os._exit(code)
        end = time.monotonic() + SECONDS
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                found.add(os.waitstatus_to_exitcode(status))
                break
            if time.monotonic() > end:
                state = open(f"/proc/{child}/stat").read().rpartition(")")[2].split()
                os.kill(child, signal.SIGABRT)
                os.waitpid(child, 0)
                TRACE.seek(0)
                found.add(f"hangs: {state[0]} after {state[11]} ticks, at {TRACE.read()}")
                stop.set()
                break
            time.sleep(0.0005)
        if stop.is_set():
            break
    stop.set()
    thread.join()
    return list(found)

print(json.dumps({name: outcomes(globals()[name]()) for name in sys.argv[1:]}))
"""
WORK = ("convolution", "changed_weights", "large_outputs", "module", "dense_crf", "pydensecrf")

WORKERS = """
import sys
import torch, fastseg
from torch.utils.data import DataLoader, Dataset

class Pooled(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, i):
        x = torch.full((1, 8, 200, 200), float(i))
        weight = torch.ones(8, 8, 3, 3)
        values, codes = fastseg.max_pool2d(fastseg.atrous_conv2d(x, weight), 2)
        return i, values, codes

if __name__ == "__main__":
    x = torch.ones(1, 8, 200, 200)
    fastseg.atrous_conv2d(x, torch.ones(8, 8, 3, 3))  # caches, threads and locks of the parent
    for context in sys.argv[1:]:
        loader = DataLoader(
            Pooled(), batch_size=3, num_workers=2, multiprocessing_context=context, timeout=100
        )
        seen = 0
        for i, values, codes in loader:
            assert torch.equal(values[:, 0, 0, 5, 5], 72.0 * i), values[:, 0, 0, 5, 5]
            assert codes.shape == values.shape
            seen += len(i)
        print(seen)
"""


def run(program: str, *arguments: str, seconds: int = 240) -> str:
    """What a program prints; one that hangs is an error."""
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=seconds,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture(scope="module")
def statuses():
    """The exit statuses of the children that do each kind of work, or that they hang."""
    return json.loads(run(FORKS, *WORK, seconds=600))


@pytest.mark.parametrize("work", WORK)
def test_children_of_a_process_whose_other_thread_computes(statuses, work):
    assert statuses[work] == [0]


def test_workers_of_a_data_loader(tmp_path):
    program = tmp_path / "workers.py"
    program.write_text(WORKERS)
    result = subprocess.run(
        [sys.executable, str(program), "fork", "spawn", "forkserver"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=240,
    )
    assert result.stdout.split() == ["12"] * 3, result.stderr


def test_an_object_that_was_in_use_at_the_fork_says_so():
    program = """if True:
        import os, threading, time
        import numpy as np
        import fastseg.compat.pydensecrf as densecrf
        crf = densecrf.DenseCRF2D(400, 300, 5)
        crf.setUnaryEnergy(np.random.rand(5, 120000).astype(np.float32))
        crf.addPairwiseGaussian(sxy=3, compat=3)
        thread = threading.Thread(target=lambda: crf.inference(10**6))
        thread.start()
        clock = time.pthread_getcpuclockid(thread.ident)
        while time.clock_gettime(clock) < 0.1:  # then it has begun
            time.sleep(0.01)
        child = os.fork()
        if child == 0:
            try:
                crf.inference(1)
            except RuntimeError as error:
                os._exit(7 if "forked" in str(error) else 8)
            os._exit(9)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        os._exit(0)
    """
    assert run(program) == "7"


def test_kernels_run_below_autograd():
    """It would lock a tensor that requires a gradient as a kernel copies it: with a fork in that
    moment the child waited for ever."""
    excluded = []
    library = torch.library.Library("fastseg_test_fork", "DEF")
    library.define("kernel(Tensor x) -> Tensor")

    def kernel(x):
        excluded.append(torch._C._dispatch_tls_is_dispatch_key_excluded("AutogradFunctionality"))
        return x.clone()

    library.impl("kernel", kernel, "CPU")
    cpu_kernel(torch.ops.fastseg_test_fork.kernel.default)(torch.ones(2, requires_grad=True))
    assert excluded == [True]

"""What checks of prepared calls share: tensors, and what two calls have launched.

The stand-in for the CUDA driver is installed before this is imported.
"""

from __future__ import annotations

import contextlib

import torch

import fastseg
from fastseg._core import prepared_calls
from benchmarks import driver_stand_in
from fastseg.kernels.conv import aspp as pyramid_kernels
from fastseg.kernels.conv import atrous_conv2d as kernels
from fastseg.kernels.conv import choice, configs
from fastseg.kernels.conv.plan_cache import cache
from fastseg.ops.conv.aspp import ASPPBranch

driver = driver_stand_in.driver()

SMALL = configs.Config(32, 32, 32, 4, 2)  # soon compiled
for key in list(configs.TABLE):
    configs.TABLE[key] = (SMALL,) * len(configs.TABLE[key])


def choose(form):
    """Lets this form compute whatever it can."""
    for module in (kernels, pyramid_kernels):
        module.choose_form = lambda *_, **options: form


choose(choice.LIVE_TAPS)

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
LAST = torch.channels_last
LEAST_ADDRESS = 1 << 40  # words of parameters below are integers, or two of them


def check(function):
    """Marks one of the checks that are run."""
    function.is_check = True
    return function


def randn(*shape, dtype=BF16, layout=LAST, skipped=0):
    """A tensor that begins `skipped` elements into its memory."""
    size = torch.Size(shape).numel()
    t = torch.randn(size + skipped).to(dtype)[skipped:]
    if len(shape) < 4 or layout != LAST:
        return t.view(shape)
    n, c, h, w = shape
    return t.view(n, h, w, c).permute(0, 3, 1, 2)


def tensors(dtype=BF16, channels=48, outputs=40, bare=False, **options):
    """The tensors of a convolution: x, weight, bias, scale, shift, residual."""
    x = randn(2, channels, 13, 13, dtype=dtype, **options)
    weight = randn(outputs, channels, 3, 3, dtype=dtype)
    if bare:
        return [x, weight, None, None, None, None]
    vectors = [randn(outputs, dtype=d) for d in (dtype, F32, dtype)]
    return [x, weight, *vectors, randn(2, outputs, 13, 13, dtype=dtype)]


def convolve(given, dilation=4, activation="relu", **options):
    x, weight, bias, scale, shift, residual = given
    vectors = {"scale": scale, "shift": shift, "residual": residual}
    return fastseg.atrous_conv2d(
        x, weight, bias, dilation=dilation, activation=activation, **vectors, **options
    )


def words(launch, known):
    """A launch's parameters in words of 8 bytes; addresses as the tensors in which they lie."""
    named, found = [], launch.parameters + bytes(-len(launch.parameters) % 8)
    for i in range(0, len(found), 8):
        word = int.from_bytes(found[i : i + 8], "little")
        if word < LEAST_ADDRESS:
            named.append(word)
            continue
        for name, t in known.items():
            first = t.untyped_storage().data_ptr()
            if first <= word < first + t.untyped_storage().nbytes():
                named.append((name, word - first))
                break
        else:
            named.append("temporary")
    return named


def described(given, result):
    """The launches since the last call, comparable to those of other calls."""
    known = {f"tensor {i}": t for i, t in enumerate(given) if t is not None}
    known["result"] = result
    known |= {f"plan {i}": plan.buffer for i, plan in enumerate(cache.plans.values())}
    found = driver.launches()
    return (
        [(one[:-2], words(one, known)) for one in found],
        [one.by_triton for one in found],
    )


@contextlib.contextmanager
def nothing_freed():
    """Keeps what is allocated: an address is then one tensor's alone, as long as it is told by."""
    kept, before = [], (torch.empty, torch.Tensor.new_empty)

    def keeping(allocate):
        def allocated(*arguments, **options):
            kept.append(allocate(*arguments, **options))
            return kept[-1]

        return allocated

    torch.empty, torch.Tensor.new_empty = map(keeping, before)
    try:
        yield
    finally:
        torch.empty, torch.Tensor.new_empty = before


ONE, SPLIT_IN = {"atrous_conv2d_kernel"}, {"atrous_conv2d_kernel", "reduce_kernel"}
PROJECTED = {"atrous_conv2d_kernel", "project_kernel"}


def compare(run, given, kernels):
    """That the second call launches what the first does, `kernels` among it, without Triton."""
    prepared_calls.forget()
    driver.launches()
    with nothing_freed():
        first, by_triton = described(given, run(given))
    assert kernels <= {launch[0] for launch, _ in first}
    assert all(by_triton)
    second, by_triton = described(given, run(given))
    assert not any(by_triton), "the second call was not prepared"
    assert first == second, f"{first}\n{second}"


def branch(channels, kernel, dilation, outputs=32, vectors=True):
    pair = (randn(outputs), randn(outputs)) if vectors else (None, None)
    return ASPPBranch(randn(outputs, channels, kernel, kernel), *pair, dilation)


def pyramid(channels=64, **options):
    rates = (2, 4, 6)
    return [branch(channels, 1, 1, **options), *(branch(channels, 3, r, **options) for r in rates)]


def all_tensors(x, *groups):
    return [x, *(t for b in groups for t in b[:3])]


SPLIT = {"channels": 512}

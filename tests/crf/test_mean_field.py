"""The op mean_field and its gradient: against the exact reference, gradcheck, tracing, memory."""

import pytest
import torch
from torch.autograd import gradcheck

import fastseg
from fastseg import reference

pytestmark = pytest.mark.usefixtures("one_thread")
ops = torch.ops.fastseg
COMPAT, HIGH, EXACT = range(3)
LABELS = 3


def problem(dtype=torch.float64, spatial=(4, 5), requires_grad=True):
    """Unary, kernels and compatibilities of every kind that the op takes."""
    g = torch.Generator().manual_seed(0)

    def random(*size, scale=1.0):
        return torch.rand(*size, generator=g, dtype=torch.float64) * scale

    unary = random(2, LABELS, *spatial, scale=3)
    kernels = [
        random(2, 3, *spatial, scale=3),
        random(1, 2, *spatial, scale=2),
        torch.linspace(1.3, 2.1, len(spatial), dtype=torch.float64),
    ]
    compatibility = [
        random(LABELS, LABELS) - 0.5,
        torch.tensor(2.0, dtype=torch.float64),
        random(LABELS) - 0.5,
    ]
    tensors = [t.to(dtype).requires_grad_(requires_grad) for t in (unary, *kernels, *compatibility)]
    return tensors[0], tensors[1:4], tensors[4:]


@pytest.mark.parametrize("normalization", range(4))
@pytest.mark.parametrize("spatial", [(4, 5), (2, 3, 4), (1, 7)])
def test_exact_is_the_reference(normalization, spatial):
    unary, kernels, compatibility = problem(spatial=spatial, requires_grad=False)
    norms = [normalization] * 3
    out = ops.mean_field(unary, kernels, compatibility, norms, 4, EXACT)
    expected = reference.mean_field(unary, kernels, compatibility, norms, 4)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("quality", [COMPAT, HIGH])
@pytest.mark.parametrize("normalization", range(4))
@pytest.mark.parametrize("spatial", [(13, 10), (4, 5, 6)])
def test_the_fused_kernel_is_the_composition(quality, normalization, spatial):
    unary, kernels, compatibility = problem(spatial=spatial, requires_grad=False)
    single = problem(torch.float32, spatial, requires_grad=False)
    norms = [normalization] * 3
    expected = ops.mean_field(unary, kernels, compatibility, norms, 3, quality)
    out = ops.mean_field(*single, norms, 3, quality)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("normalization", range(4))
def test_log_q_is_the_reference(normalization):
    unary, kernels, compatibility = problem(requires_grad=False)
    arguments = (100 * unary, kernels, compatibility, [normalization] * 3, 4)
    out = ops.mean_field(*arguments, EXACT, log=True)
    expected = reference.mean_field(*arguments, log=True)
    assert expected.min() < -200
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("quality", [COMPAT, HIGH, EXACT])
@pytest.mark.parametrize("normalization", range(4))
@pytest.mark.parametrize("log", [False, True])
def test_gradients(quality, normalization, log):
    unary, kernels, compatibility = problem(spatial=(3, 4))
    norms = [normalization] * 3

    def function(unary, *rest):
        kernels, mu = list(rest[:3]), list(rest[3:])
        return ops.mean_field(unary, kernels, mu, norms, 3, quality, 2, log)

    assert gradcheck(function, (unary, *kernels, *compatibility))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("iterations", [0, 1])
def test_gradients_of_few_iterations(iterations, log):
    unary, kernels, compatibility = problem()

    def function(unary):
        return ops.mean_field(unary, kernels, compatibility, [3] * 3, iterations, HIGH, 2, log)

    assert gradcheck(function, unary)


@pytest.mark.parametrize("checkpoints", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("log", [False, True])
def test_the_gradient_does_not_depend_on_the_checkpoints(checkpoints, log):
    def gradients(checkpoints):
        unary, kernels, compatibility = problem()
        out = ops.mean_field(unary, kernels, compatibility, [3] * 3, 9, HIGH, checkpoints, log)
        return torch.autograd.grad(out.square().sum(), [unary, *kernels, *compatibility])

    for a, b in zip(gradients(checkpoints), gradients(0), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("quality", [COMPAT, HIGH, EXACT])
def test_opcheck(quality):
    unary, kernels, compatibility = problem(torch.float32)
    arguments = (unary, kernels, compatibility, [3, 2, 0], 2, quality, 2)
    torch.library.opcheck(ops.mean_field.default, arguments)
    torch.library.opcheck(ops.mean_field.default, (*arguments, True))
    last = unary.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    torch.library.opcheck(ops.mean_field.default, (last, *arguments[1:], True))


@pytest.mark.parametrize("quality", [COMPAT, HIGH])
def test_the_layout_is_the_unarys(quality):
    unary, kernels, compatibility = problem(torch.float32, (6, 9), requires_grad=False)
    arguments = (kernels, compatibility, [3] * 3, 2, quality)
    last = unary.contiguous(memory_format=torch.channels_last)
    out = ops.mean_field(last, *arguments)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out, ops.mean_field(unary, *arguments))
    log_q = ops.mean_field(last, *arguments, log=True)
    assert log_q.is_contiguous()
    assert torch.equal(log_q, ops.mean_field(unary, *arguments, log=True))


@pytest.mark.parametrize("quality", [COMPAT, HIGH])
def test_threads_change_no_bit(quality):
    unary, kernels, compatibility = problem(torch.float32, (70, 90), requires_grad=False)
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(ops.mean_field(unary, kernels, compatibility, [3] * 3, 3, quality))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("quality", ["compat", "high", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_threads_change_no_bit_of_values_and_gradients(dtype, quality):
    """Planes of sizes that neither the vectors nor the threads divide."""
    unary = torch.randn(1, 5, 17, 19, dtype=dtype, requires_grad=True)
    image = (torch.rand(1, 3, 17, 19, dtype=dtype) * 255).requires_grad_()
    weights = torch.rand(5, dtype=dtype, requires_grad=True)
    terms = [fastseg.PairwiseGaussian(3, weights), fastseg.PairwiseBilateral(20, 13, 4)]
    leaves = [unary, image, weights]
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3, 4, 5):
            torch.set_num_threads(n)
            q = fastseg.dense_crf(unary, image, terms, iterations=2, quality=quality)
            field = fastseg.MeanField(unary.detach(), image.detach(), terms, quality=quality)
            grads = torch.autograd.grad(q.square().sum(), leaves)
            results.append([q, field.step(2), *grads])
    finally:
        torch.set_num_threads(threads)
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            assert torch.equal(one, other)

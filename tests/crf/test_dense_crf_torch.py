"""fastseg.dense_crf under torch's tracing and transformations, and on memory of any layout."""

import pytest
import torch
from torch import nn

import fastseg
from fastseg import PairwiseBilateral, PairwiseGaussian, dense_crf
from tests.crf.test_dense_crf import random_problem

ops = torch.ops.fastseg
TERMS = [PairwiseGaussian(2, 1), PairwiseBilateral(5, 60, 2)]
each_quality = pytest.mark.parametrize("quality", ["compat", "high", "exact"])


class Refined(nn.Module):
    """What users build: a network's logits, refined."""

    def __init__(self, quality: str):
        super().__init__()
        self.quality = quality

    def forward(self, logits, image):
        return dense_crf(-logits, image, TERMS, iterations=2, quality=self.quality)


@each_quality
def test_compile(quality):
    unary, image = random_problem()
    torch._dynamo.reset()
    compiled = torch.compile(Refined(quality), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(unary, image), Refined(quality)(unary, image))


@each_quality
def test_export_with_a_batch_of_any_size(quality):
    unary, image = random_problem(2)
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = {"logits": {0: batch}, "image": {0: batch}}
    program = torch.export.export(Refined(quality), (unary, image), dynamic_shapes=shapes)
    other = random_problem(3)
    assert torch.equal(program.module()(*other), Refined(quality)(*other))


@each_quality
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_arithmetic_alone(quality, dtype):
    unary, image = random_problem()
    unary.requires_grad_()
    results = []
    for enabled in (True, False):
        with torch.autocast("cpu", dtype, enabled=enabled):
            q = dense_crf(unary, image, TERMS, iterations=2, quality=quality)
        results.append((q, *torch.autograd.grad(q.square().sum(), unary)))
    for a, b in zip(*results, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@each_quality
def test_strides(quality):
    unary, image = random_problem(2, 4, (9, 12))
    expected = dense_crf(unary, image, TERMS, iterations=2, quality=quality)
    wide = torch.full((2, 8, 9, 24), torch.nan)
    wide[:, ::2, :, 5:17] = unary
    layouts = {
        "channels_last": unary.contiguous(memory_format=torch.channels_last),
        "sliced": wide[:, ::2, :, 5:17],
        "transposed": unary.mT.contiguous().mT,
        "labels first": unary.transpose(0, 1).contiguous().transpose(0, 1),
    }
    for name, given in layouts.items():
        q = dense_crf(given, image, TERMS, iterations=2, quality=quality)
        torch.testing.assert_close(q, expected, rtol=0, atol=2e-5, msg=name)
    last = image.contiguous(memory_format=torch.channels_last)
    assert torch.equal(dense_crf(unary, last, TERMS, iterations=2, quality=quality), expected)
    one = unary[:1].expand(2, -1, -1, -1)
    q = dense_crf(one, image[:1], TERMS, iterations=2, quality=quality)
    torch.testing.assert_close(q[1], expected[0], rtol=0, atol=2e-5)


@each_quality
def test_an_empty_batch(quality):
    unary, image = random_problem()
    for picture in (image[:0], image[:1]):
        assert dense_crf(unary[:0], picture, TERMS, quality=quality).shape == (0, *unary.shape[1:])


def test_opcheck_of_the_gradient():
    unary, image = random_problem()
    kernels = [torch.tensor([2.0, 2.0]), torch.cat([image / 60, image[:, :2] / 90], 1)]
    weights = [torch.tensor(1.0), torch.rand(4, 4)]
    q = ops.mean_field(unary, kernels, weights, [3, 1], 2, 1)
    arguments = (torch.rand_like(q), q, unary, kernels, weights, [3, 1], 2, 1, 2, [True] * 4)
    torch.library.opcheck(ops.mean_field_backward.default, arguments)


def test_the_layer_survives_a_state_dict_and_a_copy():
    import copy

    unary, image = random_problem()
    layer = fastseg.nn.DenseCRF(4, TERMS, iterations=2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1 * torch.rand_like(parameter)
    other = fastseg.nn.DenseCRF(4, TERMS, iterations=2)
    other.load_state_dict(layer.state_dict())
    for twin in (other, copy.deepcopy(layer)):
        assert torch.equal(twin(unary, image), layer(unary, image))

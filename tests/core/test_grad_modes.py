"""What an object keeps from one call must not change the gradients of the next.

Every module, and every object that keeps tensors, is called in one of torch's modes and is then
differentiated: its gradients are those of a fresh one.
"""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.func import grad

import fastseg
from fastseg import MeanField, PairwiseBilateral, PairwiseGaussian, PermutohedralLattice
from fastseg._core.lattice_quality import LATTICE_QUALITY
from fastseg._core.pairwise import NORMALIZATIONS
from fastseg.nn.aspp import ASPPSum

pytestmark = pytest.mark.usefixtures("one_thread")


def random(*shape, seed=0, dtype=torch.float32):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Pooled(nn.Module):
    """Pooling and unpooling around a convolution."""

    def __init__(self):
        super().__init__()
        self.pool = fastseg.nn.MaxPool2d(2, return_indices=True)
        self.unpool = fastseg.nn.MaxUnpool2d(2)
        self.block = fastseg.nn.AtrousConvBNAct(6, 6)

    def forward(self, x):
        values, codes = self.pool(x)
        return self.unpool(self.block(values), codes)


class Refined(nn.Module):
    """A convolution and a dense CRF behind it."""

    def __init__(self):
        super().__init__()
        self.conv = fastseg.nn.AtrousConvBNAct(6, 4, activation=None)
        terms = [PairwiseGaussian(2, 1), PairwiseBilateral(5, 0.5, 1)]
        self.crf = fastseg.nn.DenseCRF(4, terms, iterations=2, log=True)

    def forward(self, x):
        return self.crf(-self.conv(x), x[:, :3])


def optimised(mode):
    def make():
        blocks = [
            nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
            for _ in range(2)
        ]
        model = nn.Sequential(*blocks, nn.MaxPool2d(2), nn.Conv2d(6, 4, 1)).eval()
        fastseg.optimize_(model, mode=mode)
        return model

    return make


MODULES = {
    "AtrousConvBNAct": lambda: fastseg.nn.AtrousConvBNAct(6, 6, dilation=2),
    "AtrousConvBNAct, depthwise": lambda: fastseg.nn.AtrousConvBNAct(6, 6, groups=6),
    "SeparableAtrousConvBNAct": lambda: fastseg.nn.SeparableAtrousConvBNAct(
        6, 8, dilation=2, depthwise_batch_norm=True
    ),
    "ASPP": lambda: fastseg.nn.ASPP(6, atrous_rates=(2, 3), out_channels=8),
    "ASPP, separable": lambda: fastseg.nn.ASPP(6, (2, 3), 8, separable=True),
    "ASPPSum": lambda: ASPPSum(6, 4, (2, 3)),
    "BatchNormReLUMaxPool2d": lambda: fastseg.nn.BatchNormReLUMaxPool2d(6),
    "pooling": Pooled,
    "DenseCRF": Refined,
    "optimize_, train": optimised("train"),
    "optimize_, infer": optimised("infer"),
}


def module_of(name, frozen):
    torch.manual_seed(0)
    module = MODULES[name]().eval()
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.uniform_(-1, 1)
            m.running_var.uniform_(0.5, 2)
    return module.requires_grad_(not frozen)


def gradients(module):
    x = random(2, 6, 12, 16).requires_grad_()
    wanted = [x, *(p for p in module.parameters() if p.requires_grad)]
    out = module(x)
    out = out[0] if isinstance(out, tuple) else out
    return torch.autograd.grad((out * random(*out.shape, seed=1)).sum(), wanted, allow_unused=True)


def same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def in_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def under_no_grad(module):
    with torch.no_grad():
        module(random(2, 6, 12, 16, seed=2))


def under_inference_mode(module):
    with torch.inference_mode():
        module(random(2, 6, 12, 16, seed=2))


def with_gradient(module):
    gradients(module)


def in_another_thread(module):
    in_thread(lambda: under_inference_mode(module))


def under_autocast(module):
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        module(random(2, 6, 12, 16, seed=2))


def in_another_layout(module):
    with torch.inference_mode():
        module(random(2, 6, 12, 16, seed=2).contiguous(memory_format=torch.channels_last))


def after_a_copy(module):
    under_inference_mode(module)
    with torch.inference_mode():
        copy.deepcopy(module)
        pickle.dumps(module.state_dict())


def with_fake_tensors(module):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        module(mode.from_tensor(random(2, 6, 12, 16)))


FIRST = (
    under_no_grad,
    under_inference_mode,
    with_gradient,
    in_another_thread,
    under_autocast,
    in_another_layout,
    after_a_copy,
    with_fake_tensors,
)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("first", FIRST, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", MODULES)
def test_modules(name, first, frozen):
    module = module_of(name, frozen)
    first(module)
    same(gradients(module), gradients(module_of(name, frozen)))


@pytest.mark.parametrize("name", MODULES)
def test_modules_after_a_change_in_place(name):
    """As an optimizer's step: what was folded or packed before is not used again."""
    module, fresh = module_of(name, True), module_of(name, True)
    if name == "optimize_, infer":
        pytest.skip("its batch norms are constants, as it says")
    under_inference_mode(module)
    with torch.no_grad():
        for m in (module, fresh):
            for t in m.parameters():
                t.add_(0.1)
    same(gradients(module), gradients(fresh))
    same([module(random(2, 6, 12, 16))], [fresh(random(2, 6, 12, 16))])


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_model_optimised_and_restored_without_gradients(mode, context):
    def make(context):
        torch.manual_seed(0)
        parts = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1)
        model = nn.Sequential(*parts).eval()
        with context():
            fastseg.optimize_(model, mode=mode)
        return model

    model, fresh = make(context), make(torch.enable_grad)
    same(gradients(model), gradients(fresh))
    for m in (model, fresh):
        fastseg.restore_(m)
        m.train()
    same(gradients(model), gradients(fresh))


# Lattices and mean fields.

MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "enable_grad": torch.enable_grad,
}
each_mode = pytest.mark.parametrize("mode", MODES)
each_quality = pytest.mark.parametrize("quality", LATTICE_QUALITY)


def lattice_gradients(lattice, inputs, normalization):
    """Of the values, and of the features if the lattice was built with them."""
    values = random(2, 3, 40, seed=3, dtype=torch.float64).requires_grad_()
    out = lattice.filter(values, normalization)
    return torch.autograd.grad((out * random(2, 3, 40, seed=4)).sum(), [values, *inputs])


@each_mode
@each_quality
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_a_lattice_called_in_a_mode(normalization, quality, mode):
    def make():
        features = (3 * random(2, 3, 40, dtype=torch.float64)).requires_grad_()
        return features, PermutohedralLattice(features, quality=quality)

    (features, lattice), (other, fresh) = make(), make()
    with MODES[mode]():
        for name in NORMALIZATIONS:
            lattice.filter(random(2, 3, 40, dtype=torch.float64), name)
        lattice.ones()
    actual = lattice_gradients(lattice, [features], normalization)
    same(actual, lattice_gradients(fresh, [other], normalization))


@each_quality
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_gradients_of_a_fresh_lattice(normalization, quality):
    """What the others are held against is right."""
    features = (3 * random(2, 3, 20, dtype=torch.float64)).requires_grad_()

    def function(f):
        values = random(2, 3, 20, seed=3, dtype=torch.float64)
        return PermutohedralLattice(f, quality=quality).filter(values, normalization)

    assert torch.autograd.gradcheck(function, features)


@each_mode
@each_quality
@pytest.mark.parametrize("kept", [True, False], ids=["of ordinary", "of inference tensors"])
def test_a_lattice_built_in_a_mode(quality, mode, kept):
    """Its features are constants then; in all else it is as one whose features need no gradient."""
    features = 3 * random(2, 3, 40, dtype=torch.float64)
    fresh = PermutohedralLattice(features, quality=quality)
    with torch.inference_mode(not kept), MODES[mode]():
        given = features.clone() if not kept else features
        lattice = PermutohedralLattice(given.requires_grad_(kept), quality=quality)
    features.detach_().zero_()  # a lattice is what it was built of
    for normalization in NORMALIZATIONS:
        actual = lattice_gradients(lattice, [], normalization)
        same(actual, lattice_gradients(fresh, [], normalization))


@each_quality
def test_a_lattice_in_transforms_and_in_another_thread(quality):
    features = 3 * random(2, 3, 40, dtype=torch.float64)
    fresh = PermutohedralLattice(features, quality=quality)
    lattice = PermutohedralLattice(features, quality=quality)
    values = random(2, 3, 40, dtype=torch.float64)

    def loss(v):
        return lattice.filter(v, "symmetric").square().sum()

    grad(loss)(values)
    in_thread(lambda: lattice.filter(values, "after"))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        lattice.filter(mode.from_tensor(values), "before")
    for normalization in NORMALIZATIONS:
        actual = lattice_gradients(lattice, [], normalization)
        same(actual, lattice_gradients(fresh, [], normalization))


FIELD_QUALITIES = ("compat", "high", "exact")


def field_arguments():
    """Tensors of every kind that a MeanField keeps, all with gradients."""
    tensors = {
        "unary": 4 * random(2, 3, 5, 6, dtype=torch.float64),
        "image": 30 * random(2, 3, 5, 6, seed=1, dtype=torch.float64),
        "sxy": torch.tensor(2.0, dtype=torch.float64),
        "weight": torch.tensor(0.7, dtype=torch.float64),
        "matrix": random(3, 3, seed=2, dtype=torch.float64),
    }
    return {name: t.requires_grad_() for name, t in tensors.items()}


def field_of(tensors, quality, normalization="symmetric"):
    terms = [
        PairwiseGaussian(tensors["sxy"], tensors["weight"], normalization),
        PairwiseBilateral(4, 13, tensors["matrix"], normalization),
    ]
    return MeanField(tensors["unary"], tensors["image"], terms, quality=quality)


def field_gradients(field, tensors):
    """Of a step and of the divergence after it."""
    q = field.step()
    loss = (q * random(*q.shape, seed=5)).sum() + field.kl_divergence().sum()
    return torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)


@each_mode
@pytest.mark.parametrize("quality", FIELD_QUALITIES)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_a_mean_field_stepped_in_a_mode(normalization, quality, mode):
    """Steps without gradients make Q a constant, and nothing else."""
    tensors, others = field_arguments(), field_arguments()
    field = field_of(tensors, quality, normalization)
    with MODES[mode]():
        field.step(2)
        field.kl_divergence()
    fresh = field_of(others, quality, normalization)
    fresh.step(2)
    if mode != "enable_grad":
        fresh._logits, fresh._q = fresh._logits.detach(), fresh._q.detach()
    same(field_gradients(field, tensors), field_gradients(fresh, others))


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
@pytest.mark.parametrize("quality", FIELD_QUALITIES)
def test_a_mean_field_made_without_gradients_has_none(quality, mode):
    """Not a part of them: a normalisation, say, without its graph in a step that has one."""
    tensors = field_arguments()
    with MODES[mode]():
        field = field_of(tensors, quality)
    q = field.step(2)
    assert not q.requires_grad
    assert not field.kl_divergence().requires_grad
    same([q], [field_of(tensors, quality).step(2).detach()])
    weight = random(3, 5, 6, dtype=torch.float64).requires_grad_()
    same(torch.autograd.grad((q * weight).sum(), [weight]), [q.sum(0)])


@pytest.mark.parametrize("quality", FIELD_QUALITIES)
@pytest.mark.parametrize("changed", ["unary", "image", "sxy", "weight", "matrix"])
def test_a_mean_field_is_of_what_it_was_made_of(changed, quality):
    tensors = {name: t.detach() for name, t in field_arguments().items()}
    field = field_of(tensors, quality)
    expected = field_of({name: t.clone() for name, t in tensors.items()}, quality).step(3)
    field.step()
    tensors[changed].fill_(0.5)
    same([field.step(2)], [expected])


@pytest.mark.parametrize("quality", FIELD_QUALITIES)
def test_what_is_returned_is_nothing_that_is_kept(quality):
    tensors = {name: t.detach() for name, t in field_arguments().items()}
    field, fresh = field_of(tensors, quality), field_of(tensors, quality)
    for out in (field.q, field.log_q, field.step(), field.kl_divergence()):
        out.zero_()
    fresh.step()
    same([field.q, field.step(), field.log_q], [fresh.q, fresh.step(), fresh.log_q])
    if quality in LATTICE_QUALITY:
        values = random(2, 3, 5, 6, dtype=torch.float64)
        lattice = PermutohedralLattice(tensors["image"] / 9, quality=quality)
        expected = lattice.filter(values, "symmetric")
        lattice.ones().zero_()
        same([lattice.filter(values, "symmetric")], [expected])


@pytest.mark.parametrize("quality", FIELD_QUALITIES)
def test_copies_of_mean_fields_and_lattices(quality):
    tensors = {name: t.detach() for name, t in field_arguments().items()}
    field = field_of(tensors, quality)
    field.step()
    copies = [copy.deepcopy(field), pickle.loads(pickle.dumps(field))]
    expected = field.step(2)
    for other in copies:
        same([other.step(2), other.kl_divergence()], [expected, field.kl_divergence()])
    if quality in LATTICE_QUALITY:
        values = random(2, 3, 5, 6, dtype=torch.float64)
        lattice = PermutohedralLattice(tensors["image"] / 9, quality=quality)
        expected = lattice.filter(values, "symmetric")
        for other in (copy.deepcopy(lattice), pickle.loads(pickle.dumps(lattice))):
            assert torch.equal(other.filter(values, "symmetric"), expected)
            assert other.num_vertices == lattice.num_vertices


@each_mode
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_dense_crf_keeps_nothing(dtype, mode):
    """Two layers that share their parameters' values, one used in a mode and in another dtype."""
    torch.manual_seed(0)
    layer = fastseg.nn.DenseCRF(3, [PairwiseGaussian(2, 1), PairwiseBilateral(4, 13, 1)])
    fresh = copy.deepcopy(layer)
    image = 30 * random(2, 3, 5, 6, seed=1)
    with MODES[mode]():
        layer(random(2, 3, 5, 6).to(dtype), image)
    results = []
    for one in (layer, fresh):
        unary = (4 * random(2, 3, 5, 6)).requires_grad_()
        loss = (one(unary, image) * random(2, 3, 5, 6, seed=5)).sum()
        results.append(torch.autograd.grad(loss, [unary, *one.parameters()]))
    same(*results)

"""What a forward has read in ways of its own is compared too, and swaps are all or none."""

import collections
import copy
import functools
import importlib.util
import operator
import pickle
import types
import typing

import pytest
import torch
from torch import nn

import fastseg
from tests.optimize.optimize_cases import close, run


class Config(dict):
    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


class OwnAttributes(dict):
    """Its items are its attributes."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.__dict__ = self


class ByItem:
    k2 = 1.0

    def __init__(self):
        self.k1 = 1.0

    def __getitem__(self, name):
        return getattr(self, name)


Pair = collections.namedtuple("Pair", "a b")
CONFIG = Config(MODEL=Config(K=1.0))


class Marked(dict):
    k = 1.0


def default(value=1.0):
    return value


def inner_default(value=[1.0]):  # noqa: B006
    return value[0]


def keyword(*, value=1.0):
    return value


def constant():
    return 1.0


def as_default(value=types.SimpleNamespace(k=1.0)):  # noqa: B008
    return value.k


def with_cycle():
    config = Config(a=Config(k=1.0))
    config["a"]["parent"] = config
    return config


class Reader(nn.Module):
    """Multiplies by what a function reads of an object."""

    def __init__(self, kept, read):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.kept, self.read, self.i = kept, read, 1

    def forward(self, x):
        return self.bn(self.conv(x)).relu() * self.read(self)


def space(**attributes):
    return types.SimpleNamespace(**attributes)


def mapped(**items):
    return collections.ChainMap({}, items)


READS = {
    "config": (Config(a=Config(k=1.0)), lambda s: s.kept.a.k, lambda o: o.a.update(k=3.0)),
    "config in a dict": ({"a": Config(k=1.0)}, lambda s: s.kept["a"].k,
        lambda o: o["a"].update(k=3.0)),
    "own attributes": (OwnAttributes(a=OwnAttributes(k=1.0)), lambda s: s.kept.a.k,
        lambda o: o.a.update(k=3.0)),
    "an attribute of a dict": (Marked(), lambda s: s.kept.k, lambda o: setattr(o, "k", 3.0)),
    "a cycle": (with_cycle(), lambda s: s.kept.a.k, lambda o: o.a.update(k=3.0)),
    "ordered": (collections.OrderedDict(a=collections.OrderedDict(k=1.0)),
        lambda s: s.kept["a"]["k"], lambda o: o["a"].update(k=3.0)),
    "default dict": (collections.defaultdict(dict, a={"k": 1.0}),
        lambda s: s.kept["a"]["k"], lambda o: o["a"].update(k=3.0)),
    "named tuple": (Pair([1.0], 0), lambda s: s.kept.a[0], lambda o: o.a.__setitem__(0, 3.0)),
    "deque": (collections.deque([[1.0]]), lambda s: s.kept[0][0],
        lambda o: o[0].__setitem__(0, 3.0)),
    "object in a deque": (collections.deque([space(k=1.0)]), lambda s: s.kept[0].k,
        lambda o: setattr(o[0], "k", 3.0)),
    "global": (None, lambda s: CONFIG.MODEL.K, lambda o: CONFIG.MODEL.update(K=3.0)),
    "getattr": (space(k1=1.0), lambda s: getattr(s.kept, f"k{s.i}"),
        lambda o: setattr(o, "k1", 3.0)),
    "getattr of a class": (ByItem(), lambda s: getattr(s.kept, f"k{s.i + 1}"),
        lambda o: setattr(o, "k2", 3.0)),
    "hasattr": (space(), lambda s: 2.0 if hasattr(s.kept, f"z{s.i}") else 1.0,
        lambda o: setattr(o, "z1", 1)),
    "__getitem__": (ByItem(), lambda s: s.kept["k1"], lambda o: setattr(o, "k1", 3.0)),
    "__dict__": (space(k=1.0), lambda s: s.kept.__dict__["k"], lambda o: setattr(o, "k", 3.0)),
    "attrgetter": (space(k=1.0), lambda s: operator.attrgetter("k")(s.kept),
        lambda o: setattr(o, "k", 3.0)),
    "partial": (space(k=1.0), lambda s: functools.partial(getattr, s.kept, "k")(),
        lambda o: setattr(o, "k", 3.0)),
    "UserDict": (collections.UserDict(k=1.0), lambda s: s.kept["k"], lambda o: o.update(k=3.0)),
    "ChainMap": (mapped(k=1.0), lambda s: s.kept["k"], lambda o: o.maps[1].update(k=3.0)),
    "default": (None, lambda s: default(), lambda o: setattr(default, "__defaults__", (3.0,))),
    "in a default": (None, lambda s: inner_default(),
        lambda o: inner_default.__defaults__[0].__setitem__(0, 3.0)),
    "keyword default": (None, lambda s: keyword(),
        lambda o: setattr(keyword, "__kwdefaults__", {"value": 3.0})),
    "object as a default": (None, lambda s: as_default(),
        lambda o: setattr(as_default.__defaults__[0], "k", 3.0)),
    "code": (None, lambda s: constant(),
        lambda o: setattr(constant, "__code__", (lambda: 3.0).__code__)),
}  # fmt: skip


@pytest.mark.parametrize("name", READS)
def test_a_change_of_what_was_read_is_computed(name):
    kept, read, change = READS[name]
    model, x = Reader(kept, read).eval(), torch.randn(2, 8, 9, 7)
    before = run(model, x)
    fastseg.optimize_(model)
    assert model.why_not_fused() is None
    close(run(model, x), before)
    change(kept)
    assert model.why_not_fused() is not None
    after = run(model, x)
    fastseg.restore_(model)
    close(after, run(model, x))
    assert not torch.allclose(after, before, atol=1e-4)


def test_what_a_library_wrote_in_a_trace_is_undone():
    model = Reader(collections.UserDict(k=1.0), lambda s: s.kept.setdefault("new", 1.0))
    fastseg.optimize_(model.eval())
    assert dict(model.kept) == {"k": 1.0}


SOURCE = """
from torch import nn
K = 1.0

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.bn(self.conv(x)).relu() * K
"""


def test_globals_of_no_known_module(tmp_path):
    (tmp_path / "unregistered.py").write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("unregistered", tmp_path / "unregistered.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model, x = module.Block().eval(), torch.randn(2, 8, 9, 7)
    before = run(model, x)
    fastseg.optimize_(model)
    close(run(copy.deepcopy(model), x), before)
    module.K = 3.0
    assert "K of" in model.why_not_fused()
    assert not torch.allclose(run(model, x), before, atol=1e-4)


class Named(nn.Module):
    """A base that keeps the classes made of it."""

    kept: typing.ClassVar = {}

    def __init_subclass__(cls, *, name, **kwargs):
        super().__init_subclass__(**kwargs)
        Named.kept[name] = cls


class OfAName(Named, name="of a name"):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


def test_a_registry_of_classes_keeps_its_own():
    model, x = OfAName().eval(), torch.randn(2, 8, 9, 7)
    before = run(model, x)
    fastseg.optimize_(model)
    assert model.why_not_fused() is None
    close(run(pickle.loads(pickle.dumps(model)), x), before)
    assert Named.kept == {"of a name": OfAName, "with scripted": WithScripted}


class Final(type):
    """A metaclass that allows no more classes."""

    def __new__(cls, name, bases, members):
        if any(isinstance(b, Final) for b in bases):
            raise TypeError("no subclass is allowed")
        return super().__new__(cls, name, bases, members)


class Sealed(nn.Module, metaclass=Final):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_a_class_without_subclasses_leaves_the_model_whole(mode):
    model = nn.Sequential(nn.Conv2d(8, 32, 3), nn.BatchNorm2d(32), nn.Conv2d(32, 8, 1), Sealed())
    classes = [type(m) for m in model.eval().modules()]
    with pytest.raises(TypeError, match="no subclass is allowed"):
        fastseg.optimize_(model, mode=mode)
    assert [type(m) for m in model.modules()] == classes


class WithScripted(OfAName, name="with scripted"):
    def __init__(self):
        super().__init__()
        self.drop = torch.jit.script(nn.Sequential(nn.Dropout(0.5)))

    def forward(self, x):
        return self.drop(super().forward(x))


def test_a_scripted_module_keeps_its_own_mode():
    model = WithScripted().eval()
    fastseg.optimize_(model, dry_run=True)
    for training in (True, False):
        model.train(training)
        assert model.drop.training is training
        assert "training" not in model.drop.__dict__

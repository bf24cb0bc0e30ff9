"""Other objects beside a checkpoint's tensors: they are left aside, and none of their code runs."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import enum
import functools
import io
import os
import pathlib
import random
import re
import sys
import types

import numpy as np
import pytest
import torch

from fastseg.zoo import checkpoint, unpickler
from fastseg.zoo.checkpoint import CheckpointError
from fastseg.zoo.files import read
from fastseg.zoo.unpickler import MAKERS, StandIn
from tests.process_groups import destroy_process_group
from tests.zoo.malicious_pickles import checkpoint_with, programs, repacked

WEIGHT = torch.arange(6.0).view(2, 3)
BOTH = pytest.mark.parametrize("old", [False, True], ids=["archive", "before torch 1.6"])
# Python's audit events of reflection, which torch uses.
HARMLESS = {"object.__getattr__", "sys._getframe"}
READ_ONLY = os.O_RDONLY | os.O_CLOEXEC


class Watch:
    """What Python does while a file is read: its audit events."""

    def __init__(self):
        self.events = None
        sys.addaudithook(self._note)  # for good: there is no way to take one away

    def _note(self, event, arguments):
        if self.events is not None and event not in HARMLESS:
            self.events.append((event, str(arguments)[:200]))

    def load(self, path):
        """The file's contents; nothing may be done but to read the file."""
        self.events = []
        try:
            return checkpoint.load(path)
        finally:
            events, self.events = self.events, None
            done = [e for e in events if e != ("open", f"('{path}', 'r', {READ_ONLY})")]
            assert not done, f"{done}"


@pytest.fixture(scope="module")
def watch(tmp_path_factory):
    watch = Watch()
    path = tmp_path_factory.mktemp("first") / "plain.pt"
    for codec in ("cp437", "raw_unicode_escape"):  # Python imports these as they are first used,
        "".encode(codec)
    for old in (False, True):  # and torch some of its modules
        torch.save({"w": WEIGHT}, path, _use_new_zipfile_serialization=not old)
        checkpoint.load(path)
    return watch


def test_the_watch_sees_what_an_ordinary_pickle_does(watch, tmp_path, monkeypatch):
    """So that the tests below can fail."""
    path = tmp_path / "file.pt"
    path.write_bytes(checkpoint_with(programs(tmp_path / "canary")["os.mkdir"]))
    ordinary = types.SimpleNamespace(
        __name__="pickle", load=None, Unpickler=unpickler.pickle.Unpickler
    )
    monkeypatch.setattr(checkpoint, "unpickler", ordinary)
    with pytest.raises(AssertionError, match=r"'os\.mkdir'"):
        watch.load(path)
    assert (tmp_path / "canary").exists()


@BOTH
@pytest.mark.parametrize("program", programs(pathlib.Path()))
def test_no_code_of_a_file_runs(program, old, watch, tmp_path):
    path, canary = tmp_path / "file.pt", tmp_path / "canary"
    path.write_bytes(checkpoint_with(programs(canary, old=old)[program], old=old))
    before = {key: maker.make for key, maker in MAKERS.items()}
    contents = watch.load(path)
    assert torch.equal(contents["state_dict"]["w"], WEIGHT)
    inert = (StandIn, unpickler.Maker, torch.Tensor, type(None), dict)
    assert type(contents["beside"]) in inert
    assert not canary.exists()
    assert {key: maker.make for key, maker in MAKERS.items()} == before
    torch.save({"w": WEIGHT}, path)
    assert torch.equal(torch.load(path, weights_only=True)["w"], WEIGHT), "torch is as it was"


@BOTH
def test_a_file_that_is_a_call_as_a_whole(old, tmp_path):
    class Malicious:
        def __reduce__(self):
            return eval, ("open('canary', 'w')",)

    path = tmp_path / "file.pt"
    torch.save(Malicious(), path, _use_new_zipfile_serialization=not old)
    with pytest.raises(CheckpointError, match=r"holds a builtins\.eval as a whole, whose code is"):
        checkpoint.load(path)


@BOTH
def test_damaged_programs_are_an_error_or_inert(old, watch, tmp_path):
    """Of every program some bytes are changed: whatever it becomes, nothing runs."""
    path = tmp_path / "file.pt"
    rng = random.Random(0)
    fragments = list(programs(tmp_path / "canary", old=old).values())
    read_at_all = 0
    for _ in range(600):
        fragment = bytearray(rng.choice(fragments))
        for _ in range(rng.randint(1, 3)):
            fragment[rng.randrange(len(fragment))] = rng.randrange(256)
        path.write_bytes(checkpoint_with(bytes(fragment), old=old))
        try:
            watch.load(path)
            read_at_all += 1
        except CheckpointError as error:
            assert re.search("is not a readable checkpoint|as a whole", str(error))  # noqa: PT017
    assert read_at_all > 50
    assert not (tmp_path / "canary").exists()


class AttributeDict(dict):
    """As Lightning's and yacs' dicts."""

    def __getattr__(self, key):
        return self[key]


class HistoryBuffer(list):
    """As trainers keep their scores, with a state of its own."""

    def __init__(self):
        super().__init__([1.0, 2.0])
        self.window = np.arange(3.0)
        self.methods = {"mean": np.mean}


class Split(enum.Enum):
    TRAIN = "train"


@dataclasses.dataclass
class Settings:
    rate: float = 0.1


class Slots:
    __slots__ = ("a",)

    def __init__(self):
        self.a = 1


class KeywordNew:
    def __new__(cls, *, a):
        return super().__new__(cls)

    def __getnewargs_ex__(self):
        return (), {"a": 1}


class Named(collections.namedtuple("Base", "x y")):
    """A tuple with names."""


def beside():
    config = AttributeDict(lr=0.1, deep=AttributeDict(x=1))
    config.frozen = True
    return {
        "Namespace": argparse.Namespace(lr=0.1, out=pathlib.Path("runs")),
        "AttributeDict": config,
        "HistoryBuffer": HistoryBuffer(),
        "Path": pathlib.Path("a"),
        "datetime": datetime.datetime(2020, 1, 1),
        "timedelta": datetime.timedelta(1),
        "defaultdict": collections.defaultdict(list, a=[1]),
        "deque": collections.deque([1, 2]),
        "Counter": collections.Counter("aab"),
        "float64": np.float64(0.5),
        "text of numpy": np.str_("a"),
        "array": np.arange(3),
        "array of objects": np.array([None, "a"], dtype=object),
        "enum": {Split.TRAIN: 1},
        "dataclass": Settings(),
        "slots": Slots(),
        "keywords of new": KeywordNew(a=1),
        "named tuple": Named(1, 2),
        "sets": [{1, 2}, frozenset({3}), {pathlib.Path("a")}],
        "bytes": [b"a\xff", bytearray(b"b"), 2**100, 1j, True, None, 1.5, "é"],
        "range": range(3),
        "function": test_a_file_that_is_a_call_as_a_whole,
        "partial": functools.partial(max, 1),
        "class": Settings,
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
        "device": torch.device("cuda:1"),
        "module": torch.nn.Conv2d(1, 1, 1),
        "optimizer": torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1),
        "generator": torch.Generator().get_state(),
        "loops": (lambda loop: loop.append(loop) or loop)([]),
    }


@BOTH
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", beside())
def test_objects_beside_the_weights(kind, protocol, old, watch, tmp_path):
    path = tmp_path / "file.pt"
    contents = {"hyper": beside()[kind], "state_dict": {"w": WEIGHT}, "after": [1, {"a": "b"}]}
    torch.save(contents, path, _use_new_zipfile_serialization=not old, pickle_protocol=protocol)
    got = watch.load(path)
    assert torch.equal(got["state_dict"]["w"], WEIGHT)
    assert got["after"] == [1, {"a": "b"}]
    assert read(path).state.keys() == {"w"}


@BOTH
@pytest.mark.parametrize("protocol", [2, 5])
def test_plain_contents_come_back_as_they_were(protocol, old, tmp_path):
    path = tmp_path / "file.pt"
    kinds = ("size", "dtype", "bytes", "float64", "Counter", "defaultdict")
    contents = {kind: beside()[kind] for kind in kinds}
    contents["ordered"] = collections.OrderedDict(b=1, a=2)
    contents["numbers"] = [np.float32(0.1), np.int64(-3), np.bool_(True), np.complex64(1j)]
    contents["other order"] = np.dtype(">f8").type(0.25)
    torch.save(contents, path, _use_new_zipfile_serialization=not old, pickle_protocol=protocol)
    got = checkpoint.load(path)
    assert got == contents
    assert [type(n) for n in got["numbers"]] == [type(n) for n in contents["numbers"]]
    assert list(got["ordered"]) == ["b", "a"]


def test_items_of_a_dict_that_is_left_aside_are_kept(tmp_path):
    """A state_dict may lie in a trainer's own kind of dict."""
    path = tmp_path / "file.pt"
    torch.save(AttributeDict(state_dict=AttributeDict(w=WEIGHT)), path)
    assert torch.equal(read(path).state["w"], WEIGHT)


def tensors():
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    with_attribute = torch.nn.Parameter(torch.ones(2))
    with_attribute.note = Settings()
    return {
        **{
            str(t): torch.ones(3).to(t)
            for t in (
                torch.float64,
                torch.float16,
                torch.bfloat16,
                torch.int64,
                torch.uint8,
                torch.bool,
                torch.complex64,
                torch.float8_e4m3fn,
                torch.uint16,
            )
        },
        "views of one storage": [base, base[1:3], base.t(), base[:, ::2]],
        "expanded": torch.ones(1).expand(5),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3.0),
        "channels_last": torch.randn(1, 3, 2, 2).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "parameter with attribute": with_attribute,
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "negative": torch.tensor([1 + 2j]).conj().imag,
        "shared": torch.ones(3).share_memory_(),
    }


def bits(tensor):
    tensor = tensor.detach().resolve_conj().resolve_neg()
    return tensor.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)


# Files before torch 1.6 have no place for the two dtypes.
@pytest.mark.parametrize(
    ("kind", "old"),
    [(kind, False) for kind in tensors()]
    + [(kind, True) for kind in tensors() if kind not in ("torch.float8_e4m3fn", "torch.uint16")],
)
def test_tensors_are_those_of_torch(kind, old, tmp_path):
    path = tmp_path / "file.pt"
    torch.save(tensors()[kind], path, _use_new_zipfile_serialization=not old)
    got, expected = checkpoint.load(path), tensors()[kind]
    for a, b in zip(*(x if isinstance(x, list) else [x] for x in (got, expected)), strict=True):
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        assert torch.equal(bits(a), bits(b))
    if kind.startswith("views"):
        assert len({t.untyped_storage().data_ptr() for t in got}) == 1


def test_a_tensor_of_another_device_is_read_on_the_cpu(tmp_path):
    buffer = io.BytesIO()
    torch.save({"w": WEIGHT}, buffer)
    on_cuda = repacked(
        buffer.getvalue(), lambda p: p.replace(b"\x03\x00\x00\x00cpu", b"\x06\x00\x00\x00cuda:1")
    )
    assert on_cuda != buffer.getvalue()
    (tmp_path / "file.pt").write_bytes(on_cuda)
    assert torch.equal(checkpoint.load(tmp_path / "file.pt")["w"], WEIGHT)


@pytest.fixture
def process_group():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    yield
    destroy_process_group()


def sharded():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    return distribute_tensor(torch.ones(3), init_device_mesh("cpu", (1,)), [Shard(0)])


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: torch.eye(3).to_sparse(), "sparse"),
        (lambda: torch.eye(3).to_sparse_csr(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantized"),
        (lambda: torch.empty(3, device="meta"), "without values, of the device meta"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
        (sharded, r"sharded over processes \(DTensor\); gather them with full_tensor\(\) first"),
    ],
    ids=["coo", "csr", "quantized", "meta", "nested", "DTensor"],
)
@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_not_dense_are_named(make, kind, tmp_path):
    path = tmp_path / "file.pt"
    torch.save({"model": {"v": WEIGHT, "w": make()}}, path)
    with pytest.raises(CheckpointError, match=f"weights that are not dense tensors, {kind}: w$"):
        read(path)
    torch.save({"model": {"v": WEIGHT}, "beside": make()}, path)
    assert read(path).state.keys() == {"v"}


@BOTH
def test_a_whole_model_is_told_how_to_be_saved(old, tmp_path):
    path = tmp_path / "file.pt"
    model = torch.nn.Conv2d(1, 1, 1)
    for contents in (model, {"epoch": 3, "model": model}):
        torch.save(contents, path, _use_new_zipfile_serialization=not old)
        with pytest.raises(
            CheckpointError, match=r"a (whole )?torch\.nn\.modules\.conv\.Conv2d.*, whose"
        ):
            read(path)


def test_a_dict_that_holds_itself(tmp_path):
    path = tmp_path / "file.pt"
    loop = {}
    loop["model"] = loop
    torch.save(loop, path)
    with pytest.raises(CheckpointError, match="has no state_dict"):
        read(path)


@BOTH
def test_every_cut_is_an_error(old, tmp_path):
    path = tmp_path / "file.pt"
    torch.save({"state_dict": {"w": WEIGHT}}, path, _use_new_zipfile_serialization=not old)
    data = path.read_bytes()
    for length in range(0, len(data), 1 if len(data) < 1000 else 7):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="is not a readable checkpoint"):
            checkpoint.load(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>", "a page of HTML or XML"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
        (b"\x1f\x8b\x08" + bytes(100), "compressed by gzip"),
    ],
)
def test_files_of_another_kind_are_named(data, reason, tmp_path):
    path = tmp_path / "file.pt"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"is not a readable checkpoint: .*{reason}"):
        checkpoint.load(path)


def test_archives_of_another_kind_are_named(tmp_path):
    path = tmp_path / "file.pt"
    np.savez(path.open("wb"), w=np.ones(3))
    with pytest.raises(CheckpointError, match=r"an archive that torch\.save did not write"):
        checkpoint.load(path)
    torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1)), path)
    with pytest.raises(CheckpointError, match="a TorchScript program, which is not run"):
        checkpoint.load(path)


def test_safetensors_are_told_by_their_contents(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    path = tmp_path / "file.bin"
    save_file({"w": WEIGHT}, path)
    assert torch.equal(read(path).state["w"], WEIGHT)
    data = path.read_bytes()
    for length in range(10, len(data), 3):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="is not a readable checkpoint"):
            read(path)


def test_a_folder_is_no_checkpoint(tmp_path):
    for folder in (tmp_path, tmp_path / "file.safetensors"):
        folder.mkdir(exist_ok=True)
        with pytest.raises(FileNotFoundError, match=r"no checkpoint at .* \(a folder\)"):
            read(folder)


def test_codes_of_quantized_weights_are_not_taken_for_weights(tmp_path):
    path = tmp_path / "file.pt"
    model = torch.nn.Conv2d(1, 1, 1)
    state = {key: t.to(torch.int8) for key, t in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"2 misshapen: weight .* of torch\.int8 instead of"):
        checkpoint.load_state_dict(model, state, str(path))

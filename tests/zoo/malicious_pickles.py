"""Checkpoints with a pickle program of one's choice among their contents, and such programs."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import torch

PLACE = "the place of another pickle"


def checkpoint_with(fragment: bytes, *, old: bool = False) -> bytes:
    """A file of torch.save: {"state_dict": {"w": ...}, "beside": what the fragment makes}.

    Args:
        fragment: opcodes that leave one object on the stack.
        old: whether as before torch 1.6, not an archive.
    """
    buffer = io.BytesIO()
    contents = {"state_dict": {"w": torch.arange(6.0).view(2, 3)}, "beside": PLACE}
    torch.save(contents, buffer, _use_new_zipfile_serialization=not old)
    text = text_opcode(PLACE)
    if old:
        assert buffer.getvalue().count(text) == 1
        return buffer.getvalue().replace(text, fragment)
    return repacked(buffer.getvalue(), lambda pickle: pickle.replace(text, fragment))


def repacked(archive: bytes, change) -> bytes:
    """An archive of torch.save with another data.pkl."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(result, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change(data) if name.endswith("data.pkl") else data)
    return result.getvalue()


def text_opcode(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def name(module: str, attribute: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{attribute}\n".encode()


def name_of_stack(module: str, attribute: str) -> bytes:
    """STACK_GLOBAL, which takes dotted names."""
    return text_opcode(module) + text_opcode(attribute) + b"\x93"


def call(function: bytes, *arguments: bytes) -> bytes:
    """REDUCE."""
    return function + b"(" + b"".join(arguments) + b"tR"


def programs(canary: Path, *, old: bool = False) -> dict[str, bytes]:
    """Fragments that would make a file, or change Python, if what they ask for were done."""
    t = text_opcode
    command, file = t(f"touch {canary}"), t(str(canary))
    code = t(f"open({str(canary)!r}, 'w')")
    system, rebuild = name("os", "system"), name("torch._utils", "_rebuild_tensor_v2")
    storage = b"(" + t("storage") + name("torch", "FloatStorage") + t("0") + t("cpu") + b"K\x06"
    storage += b"NtQ" if old else b"tQ"
    tensor_arguments = storage + b"K\x00(K\x02K\x03t(K\x03K\x01t"
    tensor = call(rebuild, tensor_arguments, b"I00\n", b"N")
    arguments = b"]" + command + b"a"
    objects = system + b"(S'x'\ntR."
    registry = name("torch.serialization", "_package_registry")
    return {
        "os.system": call(system, command),
        "posix.system": call(name("posix", "system"), command),
        "Popen": call(name("subprocess", "Popen"), command, b"I01\n"),
        "eval": call(name("builtins", "eval"), code),
        "Python 2's eval": call(name("__builtin__", "eval"), code),
        "exec": call(name("builtins", "exec"), code),
        "open": call(name("builtins", "open"), file, t("w")),
        "os.mkdir": call(name("os", "mkdir"), file),
        "import": call(name("builtins", "__import__"), t("antigravity")),
        "a module of its own": name("antigravity", "fly"),
        "stack global": call(name_of_stack("os", "system"), command),
        "dotted stack global": call(name_of_stack("builtins", "eval.__call__"), code),
        "dotted torch": call(name_of_stack("torch", "os.system"), command),
        "dotted known": call(name_of_stack("collections", "OrderedDict.fromkeys"), command),
        "lazy import of torch": name("torch", "_inductor"),
        "inst": b"(" + command + b"ios\nsystem\n",
        "obj": b"(" + system + command + b"o",
        "obj of a known function": b"(" + name("_codecs", "encode") + command + t("rot13") + b"o",
        "newobj": system + b"(" + command + b"t\x81",
        "newobj_ex": system + b"(" + command + b"t}\x92",
        "what a call gave, called": call(
            call(name("operator", "attrgetter"), t("system")), name("os", "x")
        ),
        "getattr": call(call(name("builtins", "getattr"), name("os", "x"), t("system")), command),
        "partial": call(call(name("functools", "partial"), system, command)),
        "map": call(name("builtins", "list"), call(name("builtins", "map"), system, arguments)),
        "apply": call(name("torch.utils._pytree", "tree_map"), system, arguments),
        "hub": call(name("torch.hub", "load"), t("nobody/nothing"), t("model")),
        "torch.load": call(name("torch", "load"), file),
        "storage from bytes": call(name("torch.storage", "_load_from_bytes"), b"C\x04cos\n"),
        "jit": call(name("torch.jit", "load"), file),
        "library": call(name("torch._ops", "ops.load_library"), file),
        "inline C++": call(name("torch.utils.cpp_extension", "load_inline"), t("x"), t("int x;")),
        "NumPy's objects": call(
            name("numpy.core.multiarray", "scalar"),
            call(name("numpy", "dtype"), t("O8"), b"I00\n", b"I01\n"),
            b"C" + bytes([len(objects)]) + objects,
        ),
        "NumPy's load": call(name("numpy", "load"), file),
        "set items of sys.modules": name("sys", "modules") + t("torch") + b"Ns",
        "append to sys.path": name("sys", "path") + file + b"a",
        "extend sys.path": name("sys", "path") + b"(" + file + b"e",
        "add to a set of torch": registry + b"(" + file + b"\x90",
        "state of a function": rebuild + b"}" + t("__code__") + b"Nsb",
        "slots of a function": rebuild + b"N}" + t("__defaults__") + b"Ns\x86b",
        "slots of a class": name("collections", "OrderedDict") + b"N}" + t("update") + b"Ns\x86b",
        "state of a known function": rebuild + b"}" + t("make") + system + b"sb",
        "items of a tensor": tensor + b"K\x00G" + b"?" * 8 + b"s",
        "state of a tensor": tensor + b"}" + t("data") + b"Nsb",
        "hooks of a tensor": call(rebuild, tensor_arguments, b"I01\n", b"}K\x00" + system + b"s"),
        "parameter with a state": call(
            name("torch._utils", "_rebuild_parameter_with_state"),
            tensor,
            b"I01\n",
            b"}",
            b"}" + t("__class__") + name("os", "system") + b"s",
        ),
        "tensor of a class": call(
            name("torch._tensor", "_rebuild_from_type_v2"),
            system,
            name("os", "x"),
            b"(" + command + b"t",
            b"}",
        ),
        "a codec": call(name("_codecs", "encode"), t("x"), t("idna")),
        "registered codec": call(name("codecs", "register"), name("os", "system")),
        "a factory": call(name("collections", "defaultdict"), name("os", "getcwd")) + file + b"Ns",
        "another persistent id": b"(" + t("module") + name("os", "x") + file + t("source") + b"tQ",
        "an extension": b"\x82\x01",
        "copyreg": call(name("copyreg", "add_extension"), t("os"), t("system"), b"K\x01"),
        "a long bytearray": call(name("builtins", "bytearray"), b"J\xff\xff\xff\x7f"),
    }

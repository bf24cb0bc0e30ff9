"""A CUDA driver that writes launches down: code for a GPU runs to the driver, on a machine without.

Triton compiles for the GPU that the stand-in claims to be, and launches through its own launcher.
Tensors are the CPU's and stand for a GPU's; nothing is computed. `install` is for a program of its
own, before Triton and fastseg.kernels are imported, and needs gcc.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch

_installed: list[Driver] = []
SOURCE = Path(__file__).with_name("libcuda.c")


class _Launch(ctypes.Structure):
    _fields_ = (
        ("function", ctypes.c_void_p),
        ("stream", ctypes.c_void_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("attributes", ctypes.c_uint),
        ("extended", ctypes.c_uint),
        ("size", ctypes.c_uint),
        ("bytes", ctypes.c_ubyte * 2048),
    )


class Launch(NamedTuple):
    """A launch as the driver got it.

    Attributes:
        kernel: the kernel's name.
        function: its handle.
        stream: the stream's number.
        grid: numbers of blocks along three axes.
        block: numbers of threads along three axes.
        shared: bytes of shared memory.
        attributes: number of the launch's attributes.
        by_triton: whether Triton's own launcher launched it.
        parameters: the bytes that the kernel would read.
    """

    kernel: str
    function: int
    stream: int
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    attributes: int
    by_triton: bool
    parameters: bytes


class Driver:
    """The stand-in, as its users see it.

    Attributes:
        stream: the current stream's number.
        capturing: whether the current stream is being captured.
        device: the current device.
        recorded_streams: of each call of ``record_stream`` the tensor's address and the stream.
    """

    def __init__(self, library: ctypes.CDLL):
        self.library = library
        self.library.stand_in_launch.restype = ctypes.POINTER(_Launch)
        self.library.stand_in_name.restype = ctypes.c_char_p
        self.library.stand_in_name.argtypes = (ctypes.c_void_p,)
        self.stream = 0
        self.capturing = False
        self.device = 0
        self.recorded_streams: list[tuple[int, int]] = []

    def launches(self) -> list[Launch]:
        """The launches since the last call, which are forgotten."""
        found = []
        for i in range(self.library.stand_in_count()):
            one = self.library.stand_in_launch(i).contents
            name = self.library.stand_in_name(one.function).decode()
            parameters = bytes(one.bytes[: one.size])
            sizes = tuple(one.grid), tuple(one.block), one.shared, one.attributes
            by_triton = bool(one.extended)  # fastseg._launch needs no attributes
            stream = one.stream or 0
            found.append(Launch(name, one.function, stream, *sizes, by_triton, parameters))
        self.library.stand_in_clear()
        return found

    @contextlib.contextmanager
    def silent(self):
        """Launches return at once inside of the block."""
        self.library.stand_in_record(False)
        yield
        self.library.stand_in_record(True)

    @contextlib.contextmanager
    def failing(self, status: int):
        """Launches fail inside of the block."""
        self.library.stand_in_fail(status)
        yield
        self.library.stand_in_fail(0)


def driver() -> Driver:
    """The stand-in that is installed."""
    return _installed[0]


def install(capability: int = 90, processors: int = 132) -> Driver:
    """Puts the stand-in in the place of the driver, and of what torch and Triton ask about it.

    Args:
        capability: 10 times the compute capability of the GPU that it claims to be.
        processors: the number of that GPU's multiprocessors.

    Raises:
        RuntimeError: there is a driver, or it is too late.
    """
    if torch.version.cuda is not None or "fastseg.kernels" in sys.modules:
        raise RuntimeError("the stand-in needs a torch without CUDA, and to come first")
    folder = Path(tempfile.mkdtemp(prefix="driver"))
    atexit.register(shutil.rmtree, folder)
    path = folder / "libcuda.so.1"
    soname = f"-Wl,-soname,{path.name}"
    flags = ("-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread", "-w", soname)
    subprocess.run(("gcc", *flags, SOURCE, "-o", path), check=True)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    library.stand_in_set(capability, processors)
    driver = Driver(library)
    _installed.append(driver)
    _replace_torch(driver, divmod(capability, 10), processors)
    _replace_fastseg(capability, processors)
    return driver


def _replace_torch(driver: Driver, capability: tuple[int, int], processors: int) -> None:
    """What torch tells of a GPU."""
    properties = SimpleNamespace(major=capability[0], multi_processor_count=processors)
    for name, value in {
        "is_available": lambda: True,
        "current_device": lambda: driver.device,
        "get_device_capability": lambda device=None: capability,
        "get_device_properties": lambda device=None: properties,
        "device_of": lambda tensor: contextlib.nullcontext(),
        "is_current_stream_capturing": lambda: driver.capturing,
    }.items():
        setattr(torch.cuda, name, value)
    torch.cuda.current_stream = lambda device=None: driver.stream
    torch.Tensor.record_stream = lambda t, stream: driver.recorded_streams.append(
        (t.data_ptr(), stream)
    )
    guards = torch._C._dynamo.guards
    guards._empty_strided_cuda = guards._empty_strided_cpu
    torch._C._cuda_getDevice = lambda: driver.device
    torch._C._cuda_getCurrentRawStream = lambda device: driver.stream
    torch._C._cuda_isCurrentStreamCapturing = lambda: driver.capturing


def _replace_fastseg(capability: int, processors: int) -> None:
    """What fastseg assumes of tensors that are not on a GPU, and which kernels its ops have."""
    from fastseg._core import library, plain_tensors, prepared_calls
    from fastseg.kernels import common

    name = {9: "sm_90", 10: "sm_100"}.get(capability // 10, "sm_80")
    common.NO_GPU = common.Device(name, processors)
    plain_tensors.PLAIN_KEYS = frozenset()
    library.ON_CPU.clear()
    prepared_calls.DEVICE = "cpu"
    warnings.filterwarnings("ignore", "Warning only once for all operators")
    for op in ("atrous_conv2d", "aspp"):
        module = sys.modules[f"fastseg.ops.conv.{op}"]
        run = library.on_device_of_first(module._triton, library.REFERENCES[op])
        library.LIBRARY.impl(op, run, "CPU", allow_override=True)
        library.TRITON_NAMES.append(op)

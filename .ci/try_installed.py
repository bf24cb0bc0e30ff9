"""Tries an installed fastseg: its libraries, a convolution, both dense CRFs and the command line.

Run it from a folder other than the sources', of which Python would import fastseg:

    cd "$(mktemp -d)" && python .../.ci/try_installed.py
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import fastseg
from fastseg._core import extension
from fastseg.compat import pydensecrf

SOURCE = Path(__file__).resolve().parents[1]


def try_libraries():
    """The package is an installed one, and its CPU ops are the compiled ones."""
    folder = Path(fastseg.__file__).resolve().parent
    assert folder != SOURCE / "fastseg", f"fastseg was imported from its source, {folder}"
    assert extension.CPU_MISSING is None, extension.CPU_MISSING


def try_convolution():
    """An atrous convolution is torch's, and a wrong call is an error of Python's."""
    x, weight = torch.randn(1, 8, 33, 47), torch.randn(16, 8, 3, 3)
    expected = torch.nn.functional.conv2d(x, weight, padding=2, dilation=2)
    y = fastseg.atrous_conv2d(x, weight, padding=2, dilation=2)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-3)
    try:
        torch.ops.fastseg.pack_codes(x, 3)
    except RuntimeError as error:
        message = str(error)
    else:
        message = "no error"
    assert "codes must be a uint8 tensor" in message, message  # made in C++


def try_crfs():
    """The CRF of torch tensors and the one of numpy arrays give labels of high probability."""
    labels = torch.zeros(32, 48, dtype=torch.long)
    labels[:, 24:] = 1
    image = (labels * 200).to(torch.uint8).expand(1, 3, -1, -1).contiguous()
    unary = 3.0 - 3.0 * torch.nn.functional.one_hot(labels, 2).permute(2, 0, 1)[None]
    q = fastseg.dense_crf(unary, image, iterations=3)
    assert torch.equal(q.argmax(1)[0], labels)
    crf = pydensecrf.DenseCRF2D(48, 32, 2)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(2, -1).numpy()))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    q = np.array(crf.inference(3))
    assert np.array_equal(q.argmax(0), labels.flatten().numpy())


def try_command_line():
    """The command describes the installation and segments a picture by the packed weights."""
    command = Path(sys.executable).parent / "fastseg"
    info = subprocess.run([command, "info"], check=True, capture_output=True, text=True).stdout
    assert "CPU ops     loaded" in info, info
    Image.fromarray(np.full((64, 96, 3), 127, np.uint8)).save("picture.png")
    segment = [command, "segment", "--weights", "segnet_basic_camvid", "-o", "out.png"]
    subprocess.run([*segment, "picture.png"], check=True, capture_output=True)
    assert Image.open("out.png").height > 0


if __name__ == "__main__":
    torch.manual_seed(0)
    try_libraries()
    try_convolution()
    try_crfs()
    try_command_line()
    print(
        f"fastseg {fastseg.__version__}, Python {sys.version.split()[0]}, torch {torch.__version__}"
    )

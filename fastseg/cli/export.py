"""Write a network for other runtimes: ONNX, torch.export, AOTInductor or OpenVINO.

The network consists of torch's standard operators, with the weights of any checkpoint that
``fastseg segment`` takes. A card, FILE.json, says what it takes and returns. The file is run on a
random picture where its runtime is installed; the exit status is 1 where it disagrees with the
network.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

from fastseg.cli.options import add_config_option, add_output_option, use_threads
from fastseg.cli.running import UNFINISHED
from fastseg.cli.weights import add_network_options, add_weights_option, load_segmenter
from fastseg.export import FORMATS, Recipe, export_segmenter
from fastseg.export.onnx_files import LEAST_OPSET
from fastseg.export.segmenter import check_path
from fastseg.segment.segmenter import weights_file

EXAMPLES = """examples:
  fastseg export --weights run/best.pt -o model.onnx --dynamic
  fastseg export --weights run/best.pt -o model.onnx --size 512 512 --normalise --classes
  fastseg export --weights run/best.pt -o compiled.pt2 --format aoti --size 360 480
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fastseg export`."""
    add_output_option(
        parser,
        required=True,
        metavar="FILE",
        help="the file: .onnx, .pt2, or .xml for OpenVINO, which also writes a .bin",
    )
    parser.add_argument(
        "--format",
        choices=tuple(FORMATS),
        help="default: what FILE ends in; a .pt2 is torch_export's, or aoti's if named",
    )
    add_weights_option(parser)
    add_network_options(parser)
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="height and width of the input (default: the weights' short side, for both)",
    )
    parser.add_argument(
        "--dynamic", action="store_true", help="take any batch, height and width, not one size"
    )
    parser.add_argument(
        "--normalise",
        action="store_true",
        help="take uint8 RGB pictures (N, H, W, 3), or float32 ones of the weights' channels, and "
        "normalise them inside",
    )
    parser.add_argument(
        "--classes",
        action="store_true",
        help="return the class of each pixel (N, H, W), not logits",
    )
    parser.add_argument(
        "--without-crf", action="store_true", help="leave out a dense CRF that the network ends in"
    )
    parser.add_argument(
        "--opset",
        type=int,
        default=LEAST_OPSET,
        help="version of ONNX's operators (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's)")
    add_config_option(parser)


def run(options: argparse.Namespace) -> int:
    """Writes the file and its card; returns 1 where the file disagrees with the network."""
    use_threads(options.threads)
    name = options.format or _format_of(options.output)
    check_path(options.output, name).check()
    segmenter = load_segmenter(options, backend="torch")
    if options.without_crf:
        segmenter.model.crf = None
    path = weights_file(options.weights)
    recipe = Recipe(
        name,
        tuple(options.size or (segmenter.short_side,) * 2),
        dynamic=options.dynamic,
        normalise=options.normalise,
        class_map=options.classes,
        opset=options.opset,
    )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    written = export_segmenter(
        segmenter, options.output, recipe, weights={"file": path.name, "sha256": digest}
    )
    print(f"{segmenter.name} of {path.name} written to {written.path}, its card to {written.card}")
    comparison = written.comparison
    if comparison is None:
        runtime = FORMATS[name].runtime
        print(f"not compared: {runtime} is not installed (pip install {runtime})")
        return 0
    if comparison.problem is not None:
        print(f"fastseg: {written.path}: {comparison}", file=sys.stderr)
        return UNFINISHED
    print(comparison)
    return 0


def _format_of(path: Path) -> str:
    """Returns the first format whose files end as a path does.

    Raises:
        ValueError: there is none.
    """
    for name, form in FORMATS.items():
        if path.suffix == form.suffix:
            return name
    endings = ", ".join(dict.fromkeys(form.suffix for form in FORMATS.values()))
    raise ValueError(f"{path}: an exported file ends in one of {endings}")

"""The options that say which network's weights a command takes, and how they are loaded."""

from __future__ import annotations

import argparse

from fastseg.cli.options import add_model_option, model_name
from fastseg.segment.segmenter import DEFAULT_WEIGHTS, Segmenter, shipped_weights
from fastseg.zoo import SOURCES


def add_weights_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--weights``, whose default are the shipped ones that :class:`Segmenter` takes."""
    parser.add_argument(
        "--weights",
        help=f"{', '.join(shipped_weights())}, or a checkpoint of fastseg or another project "
        f"(default: {DEFAULT_WEIGHTS})",
    )


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that tell what ``--weights`` are of: for :func:`load_segmenter`."""
    parser.add_argument(
        "--model",
        type=model_name,
        metavar="NAME",
        help="that --weights are of (default: told by its keys)",
    )
    parser.add_argument(
        "--source",
        choices=("auto", "fastseg", *SOURCES),
        default="auto",
        help="project that --weights are of (default: told by its keys)",
    )
    add_model_option(parser)


def load_segmenter(
    options: argparse.Namespace, backend: str = "fastseg", short_side: int | None = None
) -> Segmenter:
    """Loads the network that the options of a command name, on the CPU.

    Args:
        options: what the two functions above have read.
        backend: whose ops run the layers, "fastseg" or "torch".
        short_side: pixels of a picture's short side; None is what the weights say.

    Raises:
        ValueError: a value out of range, or an ``--option`` that the network does not have.
        FileNotFoundError: the weights are neither a file nor a shipped name.
        CheckpointError: the file is no checkpoint of a known network.
    """
    try:
        return Segmenter.load(
            options.weights,
            model=options.model,
            source=options.source,
            options=dict(options.options),
            short_side=short_side,
            backend=backend,
        )
    except TypeError as error:  # there is no such --option
        raise ValueError(error) from error

"""Segments a folder of pictures by Ray Data: by several processes, or on many machines.

    pip install "ray[data]"
    python examples/segment_with_ray.py pictures/ segmented/ --workers 4 --threads 2

Each worker loads and optimises the network once and keeps it. The masks are palette PNGs of class
ids. On a cluster (``RAY_ADDRESS``) both folders are on storage that all machines share.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import fastseg
from fastseg.data.image import ImageError, read_image, write_png
from fastseg.segment import Predictor, Segmenter
from fastseg.segment.jobs import check_results, find_jobs


class SegmentPictures:
    """What a worker of ``Dataset.map_batches`` keeps: a network, and how it is applied.

    Args:
        output: folder of the masks.
        weights: a checkpoint; None for the DeepLab v3+ that comes with the package.
        crf: whether a dense CRF refines the classes.
        device: the network's device.
        threads: CPU threads of this worker.
    """

    def __init__(
        self,
        output: str,
        weights: str | None = None,
        crf: bool = False,
        device: str = "cpu",
        threads: int = 1,
    ) -> None:
        torch.set_num_threads(threads)
        segmenter = Segmenter.load(weights)
        segmenter.model.to(device, memory_format=torch.channels_last)
        fastseg.optimize_(segmenter.model, mode="infer")
        self.predictor = Predictor(segmenter, torch.device(device), crf=crf)
        self.output = Path(output)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Segments the files of a batch and writes their masks.

        Args:
            batch: arrays of texts: "image", the files, and "name", the masks' names.

        Returns:
            The names, and "problem": why a file has no mask, or "".
        """
        problems = [self._segment(*row) for row in zip(batch["image"], batch["name"], strict=True)]
        return {"name": batch["name"], "problem": np.array(problems)}

    def _segment(self, image: str, name: str) -> str:
        try:
            picture = read_image(image)
        except ImageError as error:  # the others go on
            return str(error)
        (labels,) = self.predictor.labels([picture])
        mask = Image.fromarray(labels)
        mask.putpalette([c for colour in self.predictor.segmenter.palette for c in colour])
        target = self.output / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_png(mask, target)
        return ""


def main(arguments: Sequence[str] | None = None) -> list[str]:
    """Segments the pictures; returns why some have no mask."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pictures", type=Path, help="folder of pictures")
    parser.add_argument("output", type=Path, help="folder of the masks")
    parser.add_argument("--weights", help="default: the DeepLab v3+ that comes with the package")
    parser.add_argument("--crf", action="store_true", help="refine with a dense CRF")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each (default: 1)")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each (default: 0)")
    parser.add_argument("--batch-size", type=int, default=8, help="files at a time (default: 8)")
    options = parser.parse_args(arguments)

    output = options.output.absolute()
    jobs = find_jobs([str(options.pictures)])
    check_results({job: [output / f"{job.name}.png"] for job in jobs})

    import ray.data  # here, so that --help needs no Ray

    output.mkdir(parents=True, exist_ok=True)
    rows = [{"image": str(job.image.absolute()), "name": job.name} for job in jobs]
    results = ray.data.from_items(rows).map_batches(
        SegmentPictures,
        fn_constructor_kwargs={
            "output": str(output),
            "weights": options.weights,
            "crf": options.crf,
            "device": "cuda" if options.gpus else "cpu",
            "threads": options.threads,
        },
        batch_size=options.batch_size,
        concurrency=options.workers,
        num_cpus=options.threads,
        num_gpus=options.gpus or None,
    )
    problems = []
    for row in results.iter_rows():
        if row["problem"]:
            problems.append(row["problem"])
            print(row["problem"])
    print(f"{len(rows) - len(problems)} masks in {output}, {len(problems)} pictures left out")
    return problems


if __name__ == "__main__":
    main()

"""Segments all pictures of a folder with one network.

    python examples/segment_folder.py pictures/ segmented/ --crf

The network is loaded and optimised once. Each picture is written as PNG with its classes in colour.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import fastseg
from fastseg.data.image import read_image, write_png
from fastseg.data.overlay import class_shares, overlay, present_classes
from fastseg.segment import Segmenter
from fastseg.segment.jobs import check_results, find_jobs
from fastseg.segment.segmenter import highest_class, refine

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


def main(arguments: Sequence[str] | None = None) -> list[Path]:
    """Segments the pictures; returns the files that were written."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pictures", type=Path, help="folder of pictures")
    parser.add_argument("output", type=Path, help="folder that is written to")
    parser.add_argument("--weights", help="default: the DeepLab v3+ that comes with the package")
    parser.add_argument("--crf", action="store_true", help="refine with a dense CRF")
    options = parser.parse_args(arguments)

    found = [p for p in options.pictures.iterdir() if p.suffix.lower() in SUFFIXES]
    jobs = find_jobs(sorted(map(str, found)))  # names: of a.jpg beside a.png with their suffixes
    targets = {job: options.output / f"{job.name}.png" for job in jobs}
    check_results({job: [target] for job, target in targets.items()})
    segmenter = Segmenter.load(options.weights)
    fastseg.optimize_(segmenter.model, mode="infer")
    options.output.mkdir(parents=True, exist_ok=True)
    for job, target in targets.items():
        picture = read_image(job.image)
        scores = segmenter(segmenter.prepare(picture))
        if options.crf:
            scores = refine(scores, picture)
        labels = highest_class(scores, (picture.height, picture.width))
        shares = class_shares(labels, len(segmenter.classes))
        print(job.image.name, *(segmenter.classes[k] for k in present_classes(shares)[:3]))
        shown = overlay(picture, {"": labels}, segmenter.classes, segmenter.palette)
        write_png(shown, target)
    return list(targets.values())


if __name__ == "__main__":
    main()

"""The division of a data set into pictures to train on, to choose by, and to test on."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastseg.data.pairs import Pair

PARTS = ("train", "val", "test")
VALIDATION = 0.2
"""Share of the pictures that are kept for validation where nobody says another."""

FEW = 5
"""Number of pictures below which none is kept: the ones to train on serve for validation."""

Parts = dict[str, list[Pair]]


def split_pairs(pairs: Sequence[Pair], split: str = "", seed: int = 0) -> Parts:
    """Divides pictures into parts.

    Args:
        pairs: the pictures.
        split: shares of the training, validation and perhaps test pictures, such as "0.8,0.2" or
            "0.7,0.1,0.2"; or a file: JSON with lists of names under "train", "val" and "test", or
            a text with the name of a validation picture in each line. A name that two parts of the
            data have begins with the part's: "val/p000". Empty keeps a fifth for validation, and
            none of fewer than five.
        seed: of the random choice, for shares.

    Returns:
        The pictures of "train", "val" and perhaps "test". Without pictures of its own, "val" has
        those of "train".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: shares or names that do not fit the pictures, or that several pictures have.
    """
    if not split:
        share = VALIDATION if len(pairs) >= FEW else 0.0
        parts = _by_shares(pairs, [1 - share, share], seed)
    elif (shares := read_shares(split)) is not None:
        parts = _by_shares(pairs, shares, seed)
    else:
        parts = _by_names(pairs, read_split(split), split)
    if not parts["train"]:
        raise ValueError(f"--split {split} leaves no picture to train on")
    if not parts["val"]:
        parts["val"] = parts["train"]
    return parts


def read_shares(text: str) -> list[float] | None:
    """Returns the shares that a text gives; None if it is none of numbers.

    Raises:
        ValueError: numbers that are no shares.
    """
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        return None
    if len(shares) == 1:
        shares.append(1 - shares[0])
    if len(shares) > 3 or not all(0 <= s <= 1 for s in shares) or abs(sum(shares) - 1) > 1e-3:
        raise ValueError(
            f"--split {text}: shares to train, validate and perhaps test with must be 0 to 1 and "
            "add up to 1"
        )
    return shares


def _by_shares(pairs: Sequence[Pair], shares: Sequence[float], seed: int) -> Parts:
    """Divides pictures at random; each part that has a share gets one where there are enough."""
    order = np.random.default_rng((seed, len(pairs))).permutation(len(pairs)).tolist()
    parts: Parts = {}
    for part, share in list(zip(PARTS, shares, strict=False))[:0:-1]:
        count = max(round(share * len(pairs)), 1) if share else 0
        count = min(count, len(order) - 1)
        parts[part] = [pairs[k] for k in sorted(order[:count])]
        order = order[count:]
    return {"train": [pairs[k] for k in sorted(order)], **dict(reversed(parts.items()))}


def read_split(path: str | Path) -> dict[str, list[str]]:
    """Reads the names of pictures by part, see :func:`split_pairs`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"--split {path}: neither shares, such as 0.8,0.2, nor a file that is there"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() != ".json":
            return {"val": [line.strip() for line in text.splitlines() if line.strip()]}
        found: Any = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--split {path}: neither a text nor JSON ({error})") from None
    good = isinstance(found, Mapping) and all(
        part in PARTS and isinstance(names, list) and all(isinstance(n, str) for n in names)
        for part, names in found.items()
    )
    if not good:
        raise ValueError(f"--split {path}: must hold lists of names under {', '.join(PARTS)}")
    return dict(found)


def _by_names(pairs: Sequence[Pair], names: Mapping[str, list[str]], path: str) -> Parts:
    meant = _meant(pairs)
    listed = [name for part in names.values() for name in part]
    missing = [name for name in listed if name not in meant]
    if missing:
        raise ValueError(
            f"--split {path}: names {len(missing)} that are not there, the first is {missing[0]}"
        )
    unclear = [name for name in listed if len(meant[name]) > 1]
    if unclear:
        expected = " or ".join(sorted(pair.full_name for pair in meant[unclear[0]])[:3])
        raise ValueError(
            f"--split {path}: names {len(unclear)} that several pictures have, the first is "
            f"{unclear[0]}, expected {expected}"
        )
    parts = {part: [pair for n in names.get(part, []) for pair in meant[n]] for part in PARTS}
    if "train" not in names:
        others = {pair for listed in parts.values() for pair in listed}
        parts["train"] = [pair for pair in pairs if pair not in others]
    trained = set(parts["train"])
    both = sorted(p.full_name for part in PARTS[1:] for p in parts[part] if p in trained)
    if both and trained != set(parts["val"]):  # all of them are, where there are few
        raise ValueError(f"--split {path}: {both[0]} is to be trained on and to be scored")
    return parts if parts["test"] else {part: parts[part] for part in PARTS[:2]}


def _meant(pairs: Sequence[Pair]) -> dict[str, set[Pair]]:
    """Returns the pictures that a name in a file may mean: names come before names of files."""
    named: dict[str, set[Pair]] = defaultdict(set)
    files: dict[str, set[Pair]] = defaultdict(set)
    for pair in pairs:
        named[pair.name].add(pair)
        named[pair.full_name].add(pair)
        files[pair.image.name].add(pair)
    return {**files, **named}


def told_apart(parts: Parts) -> Parts:
    """Returns pictures that know their part where their names do not tell them apart."""
    files = {(pair.name, pair.image) for pairs in parts.values() for pair in pairs}
    count = Counter(name for name, _ in files)
    return {
        part: [pair._replace(part=part) if count[pair.name] > 1 else pair for pair in pairs]
        for part, pairs in parts.items()
    }


def names_of(parts: Parts) -> dict[str, list[str]]:
    """Returns the names of the pictures by part, as a file of them has them."""
    return {part: [pair.full_name for pair in pairs] for part, pairs in parts.items()}

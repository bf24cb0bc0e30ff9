"""Files that list the classes of a data set: text, CSV or JSON, with ids and colours or without."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fastseg.data.classes import VOID, Classes, Value
from fastseg.data.label_sets import Colour, voc_palette

GAP = r"[\s,;:]+"
BYTE = r"(\d{1,3})"
FORMS = (
    re.compile(rf"(?P<id>\d+){GAP}(?P<name>.*?[^\s,;:\d].*?){GAP}{BYTE}{GAP}{BYTE}{GAP}{BYTE}"),
    re.compile(rf"(?P<id>\d+){GAP}{BYTE}{GAP}{BYTE}{GAP}{BYTE}{GAP}(?P<name>.*\D.*)"),
    re.compile(rf"{BYTE}{GAP}{BYTE}{GAP}{BYTE}{GAP}(?P<name>.*\D.*)"),
    re.compile(rf"(?P<name>.*?\D.*?){GAP}{BYTE}{GAP}{BYTE}{GAP}{BYTE}"),
    re.compile(rf"(?P<id>\d+){GAP}(?P<name>.*\D.*)"),
)
"""Forms of a line: ids, names and colours in the orders that data sets have; else it is a name."""

Entry = tuple[str, int | None, Colour | None]
"""Name, id and colour of a class; None where the file does not say."""

HEADER = re.compile(r"\W*(id|name|class|label)s?\W.*\b(r|red|name|class|colou?r|label)\b.*", re.I)
"""Pattern of a table's first line."""


def read_classes(path: str | Path) -> Classes:
    """Reads a file of classes.

    A text has a name a line, in the order of the ids from 0 on; ids before the names, and colours
    before or after them, are told by the numbers (``road 128 64 128``, ``7: road``). JSON is a
    list of names, a list of ``{"name": ..., "id": ..., "color": [r, g, b]}``, a dict of ids or
    colours by names or of names by ids. Classes called void, ignore or unlabelled do not count.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file lists no classes, or a name, id or colour twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file of classes at {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: classes are a text, CSV or JSON file, this is none") from None
    try:
        entries = _of_json(json.loads(text)) if path.suffix.lower() == ".json" else _of_text(text)
        return _classes(entries)
    except (ValueError, KeyError, RecursionError) as error:
        raise ValueError(f"{path}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is no JSON ({error})"
    if isinstance(error, RecursionError):
        return "its JSON is nested too deeply, expected a list or a dict of classes"
    return f"lacks {error}" if isinstance(error, KeyError) else str(error)


def _classes(entries: list[Entry]) -> Classes:
    """Returns the classes of (name, id, colour) entries."""
    if not entries:
        raise ValueError("lists no classes")
    names = [name for name, _, _ in entries]
    ids = [position if k is None else k for position, (_, k, _) in enumerate(entries)]
    colours = [colour for _, _, colour in entries if colour is not None]
    for what, found in (("name", names), ("id", ids), ("colour", colours)):
        twice = {str(value) for value in found if found.count(value) > 1}
        if twice:
            raise ValueError(f"has the {what} {min(twice)} more than once")
    if colours and len(colours) < len(entries):
        raise ValueError(f"has {len(colours)} colours for {len(entries)} classes")
    if any(not 0 <= k <= 255 for k in ids):
        raise ValueError(f"lists {len(ids)} classes; their ids must be 0 to 255")
    ordered = sorted(zip(ids, names, colours or [None] * len(ids), strict=True))
    palette = voc_palette(len(entries))
    kept = [name for _, name, _ in ordered if name.lower() not in VOID]
    drawn, values = [], dict[Value, int]()
    for k, name, colour in ordered:
        new = 255
        if name.lower() not in VOID:
            new = len(drawn)
            drawn.append(palette[new] if colour is None else colour)
        values[k] = new
        if colour is not None:
            values[colour] = new
    return Classes(tuple(kept), tuple(drawn), values)


def _of_text(text: str) -> list[Entry]:
    lines = [line.strip().strip(",;") for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if len(lines) > 1 and HEADER.fullmatch(lines[0]):
        lines = lines[1:]
    for form in FORMS:
        matches = [form.fullmatch(line) for line in lines]
        if all(matches):
            return [_of_match(match) for match in matches]
    return [(line, None, None) for line in lines]


def _of_match(match: re.Match[str]) -> Entry:
    named = match.groupdict()
    inner = [match.group(k) for k in range(1, match.re.groups + 1)]
    places = set(match.re.groupindex.values())
    numbers = [text for k, text in enumerate(inner, 1) if k not in places]
    number = named.get("id")
    return (
        named["name"].strip().strip("\"'"),
        None if number is None else int(number),
        _colour([int(n) for n in numbers]) if numbers else None,
    )


def _of_json(found: Any) -> list[Entry]:
    if isinstance(found, dict):
        for key in ("classes", "names", "labels", "categories"):
            if isinstance(found.get(key), (list, dict)):
                colours = found.get("palette") or found.get("colors") or found.get("colours")
                entries = _of_json(found[key])
                if colours is None:
                    return entries
                return _coloured(entries, colours)
        return [_of_item(key, value) for key, value in found.items()]
    if not isinstance(found, list):
        raise ValueError(f"must hold a list or a dict of classes, got {type(found).__name__}")
    return [_of_entry(entry) for entry in found]


def _coloured(entries: list[Entry], palette: Any) -> list[Entry]:
    """Returns classes with the colours of a palette, in their order."""
    if not isinstance(palette, list):
        raise ValueError(f"its palette must be a list of colours, got {palette!r}")
    if len(palette) != len(entries):
        raise ValueError(f"its palette has {len(palette)} colours for {len(entries)} classes")
    pairs = zip(entries, palette, strict=True)
    return [(name, k, _colour(colour)) for (name, k, _), colour in pairs]


def _of_item(key: str, value: Any) -> Entry:
    """Returns the class of a dict's item: a name by an id, or an id or a colour by a name."""
    if isinstance(value, str) and re.fullmatch(r"-?\d+", key):
        return value, int(key), None
    if isinstance(value, bool) or not isinstance(value, (int, list)):
        raise ValueError(f"item {key!r}: {value!r} is neither an id, a colour nor a name by an id")
    return (key, value, None) if isinstance(value, int) else (key, None, _colour(value))


def _of_entry(entry: Any) -> Entry:
    if isinstance(entry, str):
        return entry, None, None
    if not isinstance(entry, dict):
        raise ValueError(f"a class must be a name or a dict with a name, got {entry!r}")
    colour = next((entry[k] for k in ("color", "colour", "rgb") if k in entry), None)
    number = entry.get("id")
    if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
        raise ValueError(f"an id must be a whole number, got {number!r}")
    return str(entry["name"]), number, None if colour is None else _colour(colour)


def _colour(values: Any) -> Colour:
    if isinstance(values, str) and re.fullmatch(r"#?[0-9a-fA-F]{6}", values):
        values = list(bytes.fromhex(values.lstrip("#")))
    good = isinstance(values, list) and len(values) == 3
    if not (good and all(isinstance(v, int) and 0 <= v <= 255 for v in values)):
        raise ValueError(f"a colour must be three numbers of 0 to 255, got {values!r}")
    return (values[0], values[1], values[2])

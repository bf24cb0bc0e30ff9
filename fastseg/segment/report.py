"""A report of scores as one HTML file that needs no other: tables, bars, curves and pictures."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape

from PIL import Image

from fastseg.data.channel_image import preview
from fastseg.data.sheets import coloured
from fastseg.segment.scoring import Labelled, PictureScore, Scores

WIDTH, MAX_HEIGHT = 420, 4096
"""Width of pictures and their greatest height, pixels; a JPEG has no more than 65500."""

OPACITY = 0.55
MOST_CELLS = 40
"""Number of classes up to which the confusion matrix is shown."""

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
       color: #1c2430; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } th, td { padding: .2rem .6rem; text-align: right; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 1px solid #8894a5; }
.bar { display: inline-block; height: .8rem; background: #3467c8; vertical-align: middle; }
.track { display: inline-block; width: 16rem; background: #e8ecf2; text-align: left; }
.matrix td { width: 2.4rem; font-size: .75rem; } .swatch { display: inline-block; width: .8rem;
             height: .8rem; border: 1px solid #444; margin-right: .4rem; vertical-align: middle; }
.scroll { overflow-x: auto; } .pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; width: 420px; } figcaption { font-size: .85rem; overflow-wrap: anywhere; }
.compare { position: relative; --x: 50%; line-height: 0; }
.compare img { width: 100%; } .compare .over { position: absolute; left: 0; top: 0;
               clip-path: inset(0 0 0 var(--x)); }
.compare::after { content: ""; position: absolute; top: 0; bottom: 0; left: var(--x); width: 2px;
                  background: #fff; box-shadow: 0 0 3px #000; }
input[type=range] { width: 100%; margin: .3rem 0 0; }
svg text { font-size: 12px; }
"""


def html_report(
    title: str, facts: Mapping[str, str], scores: Scores, groups: Mapping[str, Sequence[Labelled]]
) -> str:
    """Returns the report.

    Args:
        title: its title.
        facts: what was scored and how, as texts by names.
        scores: the scores.
        groups: pictures to show under a title, with their true and predicted classes.
    """
    by_index = {p.index: p for p in scores.pictures}
    parts = [
        f"<h1>{escape(title)}</h1>",
        _table(("", ""), [(escape(k), escape(v)) for k, v in facts.items()]),
        "<h2>Scores</h2>",
        _table(("score", "value"), [(escape(k), _number(v)) for k, v in scores.summary().items()]),
        "<h2>Classes</h2>",
        _classes(scores),
        "<h2>Confusion matrix</h2>",
        _matrix(scores),
        "<h2>Near the boundaries</h2>",
        _curve(scores),
    ]
    for name, shown in groups.items():
        if shown:
            parts.append(f"<h2>{escape(name)}</h2><div class='pictures'>")
            parts += [_figure(labelled, by_index[labelled[0]], scores) for labelled in shown]
            parts.append("</div>")
    body = "\n".join(parts)
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{escape(title)}"
        f"</title><style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    cells = "".join(f"<th>{cell}</th>" for cell in head)
    shown = f"<thead><tr>{cells}</tr></thead>" if any(head) else ""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class='scroll'><table class='{kind}'>{shown}<tbody>{body}</tbody></table></div>"


def _swatch(colour: Sequence[int]) -> str:
    red, green, blue = colour
    return f"<span class='swatch' style='background: rgb({red}, {green}, {blue})'></span>"


def _classes(scores: Scores) -> str:
    rows = []
    for (name, found), colour in zip(
        scores.by_class().items(), scores.classes.palette, strict=True
    ):
        share = 0 if math.isnan(found["iou"]) else found["iou"]
        bar = f"<span class='track'><span class='bar' style='width: {share:.1%}'></span></span>"
        numbers = [_number(found[key]) for key in ("iou", "dice", "precision", "recall")]
        rows.append((_swatch(colour) + escape(name), bar, *numbers, f"{found['pixels']:,}"))
    return _table(("class", "", "IoU", "Dice", "precision", "recall", "pixels"), rows)


def _matrix(scores: Scores) -> str:
    counts, names = scores.matrix.counts.double(), scores.classes.names
    if len(names) > MOST_CELLS:
        return f"<p>{len(names)} classes are too many to show; the JSON file has it.</p>"
    rows = []
    shares = (counts / counts.sum(1, keepdim=True).clamp_min(1)).tolist()
    for name, row in zip(names, shares, strict=True):
        cells = [
            f"<span style='display: block; background: rgba(52, 103, 200, {share:.3f}); color: "
            f"{'#fff' if share > 0.5 else '#1c2430'}'>{share:.1%}</span>"
            for share in row
        ]
        rows.append((escape(name), *cells))
    note = "<p>Shares of the pixels of each true class (rows) by predicted class (columns).</p>"
    return note + _table(("", *map(escape, names)), rows, "matrix")


def _curve(scores: Scores) -> str:
    """Returns the mean IoU within bands around the true boundaries, over the bands' widths."""
    trimap = scores.boundaries[2]
    found = trimap.compute()
    points = [(w, found[f"mean_iou_within_{w}"]) for w in trimap.widths]
    points = [(w, v) for w, v in points if not math.isnan(v)]
    if not points:
        return "<p>There are no boundaries.</p>"
    width, height, left, bottom = 520, 260, 48, 220
    top_width = math.log2(max(trimap.widths)) or 1
    places = [
        (left + math.log2(w) / top_width * (width - left - 20), bottom - v * (bottom - 16), w, v)
        for w, v in points
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in places)
    marks = "".join(
        f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3.5' fill='#3467c8'><title>{v:.4f}</title></circle>"
        f"<text x='{x:.1f}' y='{bottom + 18}' text-anchor='middle'>{w}</text>"
        for x, y, w, v in places
    )
    grid = "".join(
        f"<line x1='{left}' x2='{width - 20}' y1='{y:.1f}' y2='{y:.1f}' stroke='#dde2ea'/>"
        f"<text x='{left - 8}' y='{y + 4:.1f}' text-anchor='end'>{share:.1f}</text>"
        for share in (0, 0.2, 0.4, 0.6, 0.8, 1)
        for y in [bottom - share * (bottom - 16)]
    )
    return (
        f"<p>Mean IoU of the pixels within a band around the true boundaries, over its width in "
        f"pixels.</p><svg width='{width}' height='{height}' role='img'>{grid}"
        f"<polyline points='{line}' fill='none' stroke='#3467c8' stroke-width='2'/>{marks}</svg>"
    )


def _figure(labelled: Labelled, found: PictureScore, scores: Scores) -> str:
    _, image, truth, predicted = labelled
    before, after = (
        _data_url(Image.blend(preview(image), coloured(ids, scores.classes), OPACITY))
        for ids in (truth, predicted)
    )
    return (
        f"<figure><div class='compare'><img src='{before}' alt='truth'>"
        f"<img class='over' src='{after}' alt='prediction'></div>"
        "<input type='range' min='0' max='100' value='50' aria-label='truth or prediction' "
        "oninput=\"this.previousElementSibling.style.setProperty('--x', this.value + '%')\">"
        f"<figcaption>{escape(found.name)}: mIoU {_number(found.miou)}, pixel accuracy "
        f"{_number(found.pixel_accuracy)}; truth on the left, prediction on the right"
        "</figcaption></figure>"
    )


def _data_url(picture: Image.Image) -> str:
    scale = min(WIDTH / picture.width, MAX_HEIGHT / picture.height)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    file = io.BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"

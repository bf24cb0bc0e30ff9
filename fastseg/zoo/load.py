"""fastseg.load_checkpoint and fastseg.from_checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from fastseg.models import build_model, list_models
from fastseg.models._model import SegmentationModel
from fastseg.models.backbones import BACKBONES
from fastseg.zoo import (
    checkpoint,
    kazuto,
    milesial,
    mmseg,
    smp,
    tensorflow,
    torchvision,
    vainf,
    wkentaro,
)
from fastseg.zoo.checkpoint import CheckpointError
from fastseg.zoo.files import Contents, read
from fastseg.zoo.fitting_options import hint
from fastseg.zoo.own import LEAST_LIKENESS, how_to_load, likeness, told_options
from fastseg.zoo.report import LoadReport, fill
from fastseg.zoo.shapes import number_of_classes, options_of
from fastseg.zoo.source import Converted, Layout, Source
from fastseg.zoo.state_dicts import listed

_MODULES = (torchvision, smp, vainf, milesial, mmseg, wkentaro, kazuto, tensorflow)
SOURCES: dict[str, Source] = {module.SOURCE.name: module.SOURCE for module in _MODULES}
OWN = "fastseg"
AUX = "aux_classifier."
ON_BACKBONES = ("deeplabv2", "deeplabv3", "deeplabv3plus", "fcn")


def load_checkpoint(
    model: nn.Module, path: str | Path, *, source: str = "auto", strict: bool = True
) -> LoadReport:
    """Fill one of fastseg's models from a checkpoint of another project, or of fastseg.

    That all keys fit does not make the outputs equal: the model's options must be the source's,
    such as `dilation_style`; they are in the report. :func:`fastseg.from_checkpoint` builds it so.

    Args:
        model: of ``fastseg.models``; its dtypes and devices stay.
        path: a .safetensors file (needs the safetensors package), or one that torch.save wrote: a
            state_dict, also inside a training checkpoint, or a fastseg weights file. No code of it
            is run.
        source: "auto": recognised by the keys; "fastseg", or a name of ``fastseg.zoo.SOURCES``.
        strict: whether everything must fit. Batch norms' ``num_batches_tracked`` may be absent.

    Returns:
        What was recognised and loaded; with strict=False, also what was not.

    Raises:
        ValueError: an unknown source.
        FileNotFoundError: there is no such file.
        ImportError: the safetensors package is needed and not installed.
        CheckpointError: the file is not readable or of no source that is known, or, strict,
            something does not fit: all missing, unexpected and misshapen keys. The model is as it
            was.
    """
    contents = read(path)
    keys, own = contents.state, model.state_dict()
    known, layout = _recognised(
        contents,
        source,
        path,
        own=lambda: source == OWN or 2 * sum(key in own for key in keys) > len(keys),
    )
    if layout is None:
        own = {key: key for key in contents.state}
        converted, told = Converted(contents.state, own, ()), contents.metadata or {}
        builder, options = told.get("model"), told.get("options", {})
    else:
        converted = layout.converted(contents.state)
        builder, options = layout.model, _options(layout, converted.state)
    return fill(
        model,
        converted,
        _called(path, known, layout),
        strict=strict,
        source=known,
        model=builder,
        options=options,
    )


def from_checkpoint(
    path: str | Path, model: str | None = None, *, source: str = "auto", **options: Any
) -> SegmentationModel:
    """Build the model of a checkpoint, with the options under which its outputs are the source's.

    Classes, backbone, auxiliary head and widths are read from the checkpoint. What no shape tells,
    such as rates and `align_corners`, is what the source has by default (``fastseg.zoo.SOURCES``).
    An image must be prepared as the `preprocessing` there says, for the source that
    :func:`fastseg.zoo.recognise` names.

    Args:
        path: as in :func:`fastseg.load_checkpoint`.
        model: the builder's name; default: the one that the checkpoint is of. Needed for a
            state_dict of fastseg's own that is no weights file, whose options shapes tell, or you.
        source: as in :func:`fastseg.load_checkpoint`.
        **options: of the builder, which win over the source's; `backbone_options` one by one.
            ``aux=False`` leaves an auxiliary head out.

    Returns:
        The model in evaluation mode, float32, on the CPU.

    Raises:
        ValueError: an unknown source or model, or an option out of range.
        TypeError: an option that the model has not.
        CheckpointError: as in :func:`fastseg.load_checkpoint`; the checkpoint is of another model;
            its backbone is none of fastseg's; it does not fit these options: the error names those
            that it fits, if changing a few is enough.
    """
    return build(path, model, source=source, **options).model


class Built(NamedTuple):
    """The model of a checkpoint, and what it was taken for."""

    model: SegmentationModel
    source: str  # a name of SOURCES or "fastseg"
    builder: str
    metadata: dict[str, Any] | None  # of fastseg's weights files


def build(
    path: str | Path, model: str | None = None, *, source: str = "auto", **options: Any
) -> Built:
    """:func:`fastseg.from_checkpoint`, which has the arguments, with what it found."""
    if model is not None and model not in list_models():
        raise ValueError(f"model must be None or one of {list_models()}, got {model!r}")
    contents = read(path)
    known, layout = _recognised(
        contents,
        source,
        path,
        own=lambda: model is not None and likeness(model, contents.state) >= LEAST_LIKENESS,
    )
    if layout is None and contents.metadata is None:
        return Built(_of_own_state(contents.state, model, path, options), known, model, None)
    builder = _builder(contents, layout)
    if model not in (None, builder):
        raise CheckpointError(f"{path} is a {builder} of {known}, not a {model}")
    if layout is None:
        built = checkpoint.build_saved(path, contents.state, contents.metadata, **options)
        return Built(built, known, builder, contents.metadata)
    name = _called(path, known, layout)
    converted = layout.converted(contents.state)
    options = _merged(_options(layout, converted.state), options)
    if builder in ON_BACKBONES and "backbone" not in options:
        keys = listed([key for key in contents.state if key.startswith(("backbone", "encoder"))])
        raise CheckpointError(
            f"{name}: its backbone is none of fastseg's, {', '.join(sorted(BACKBONES))}: {keys}"
        )
    if options.get("num_classes") is None:
        options["num_classes"] = number_of_classes(builder, converted.state, name)
    built = build_model(builder, **options)
    if options.get("aux") is False:
        converted = _without(converted, AUX)
    try:
        fill(built, converted, name, strict=True, source=known, model=builder)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{hint(builder, options, converted.state)}") from None
    return Built(built.eval(), known, builder, None)


def _of_own_state(
    state: Mapping[str, Tensor], builder: str, path: str | Path, given: Mapping[str, Any]
) -> SegmentationModel:
    """The model of a state_dict of fastseg's, whose options shapes tell or the caller gives."""
    options = _merged(told_options(builder, state, str(path)), given)
    built = build_model(builder, **options)
    if options.get("aux") is False:
        state = {key: t for key, t in state.items() if not key.startswith(AUX)}
    try:
        checkpoint.load_state_dict(built, state, str(path))
    except CheckpointError as error:
        raise CheckpointError(f"{error}{hint(builder, options, state)}") from None
    return built.eval()


def recognise(path: str | Path, *, source: str = "auto") -> tuple[str, str]:
    """Tell what a checkpoint is of: the source's name, or "fastseg", and the builder's name.

    Args:
        path: as in :func:`fastseg.load_checkpoint`.
        source: as there; what is not of this one is an error.

    Raises:
        ValueError: an unknown source.
        CheckpointError: as in :func:`fastseg.load_checkpoint`.
    """
    contents = read(path)
    known, layout = _recognised(contents, source, path, own=lambda: False)
    return known, _builder(contents, layout)


def _builder(contents: Contents, layout: Layout | None) -> str | None:
    return (contents.metadata or {}).get("model") if layout is None else layout.model


def _recognised(
    contents: Contents, source: str, path: str | Path, own: Callable[[], bool]
) -> tuple[str, Layout | None]:
    """The source's name and the network; None for fastseg's.

    Args:
        contents: the checkpoint's.
        source: its name or "auto".
        path: for errors.
        own: whether a state_dict that is of no source may be one of fastseg's.
    """
    if source not in ("auto", OWN, *SOURCES):
        names = ", ".join(("auto", OWN, *SOURCES))
        raise ValueError(f"source must be one of {names}, got {source!r}")
    keys = contents.state
    if contents.metadata is not None and source in ("auto", OWN):
        return OWN, None
    for known in (s for s in SOURCES.values() if source in ("auto", s.name)):
        refusal = known.refusal_of(keys)
        if refusal is not None:
            raise CheckpointError(f"{path} is of {known.what}, but {refusal}")
        layout = known.layout_of(keys)
        if layout is not None:
            return known.name, layout
    if source in ("auto", OWN) and own():
        return OWN, None
    raise CheckpointError(_unknown(contents, source, path))


def _unknown(contents: Contents, source: str, path: str | Path) -> str:
    """Why a checkpoint is of no source, and what would load it."""
    keys = contents.state
    if source in ("auto", OWN):
        call = how_to_load(keys, path)
        if call or source == OWN:
            ways = "build it and use load_checkpoint" + f", or {call}" * bool(call)
            return f"{path} has no options to build its model with: {ways}"
        names = ", ".join((OWN, *SOURCES))
        return f"{path} is no checkpoint of any of {names}; its keys: {listed(keys)}"
    others = [s.name for s in SOURCES.values() if s.layout_of(keys)]
    others += [OWN] * (contents.metadata is not None)
    fits = f"source={others[0]!r} fits" if others else f"its keys: {listed(keys)}"
    return f"{path} is no checkpoint of {SOURCES[source].what}; {fits}"


def _options(layout: Layout, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Of the builder: the source's, and what the state_dict tells."""
    told = options_of(layout.model, state)
    further = layout.backbone_options.get(told.get("backbone", ""), {})
    return _merged(layout.options, told, {"backbone_options": further} if further else {})


def _merged(*options: Mapping[str, Any]) -> dict[str, Any]:
    """The later win; of `backbone_options` each one by itself."""
    merged: dict[str, Any] = {}
    for given in options:
        inner = {**merged.get("backbone_options", {}), **(given.get("backbone_options") or {})}
        merged |= {**given, "backbone_options": inner} if inner else given
    return merged


def _without(converted: Converted, prefix: str) -> Converted:
    kept = {key: t for key, t in converted.state.items() if not key.startswith(prefix)}
    return converted._replace(state=kept)


def _called(path: str | Path, known: str, layout: Layout | None) -> str:
    return f"{path}, taken for a {layout.model} of {known}," if layout else f"{path}"

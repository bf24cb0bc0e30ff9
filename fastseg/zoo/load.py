"""The functions fastseg.load_checkpoint and fastseg.from_checkpoint."""

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
from fastseg.zoo.source import Converted, Layout, Source, has
from fastseg.zoo.state_dicts import listed

_MODULES = (torchvision, smp, vainf, milesial, mmseg, wkentaro, kazuto, tensorflow)
SOURCES: dict[str, Source] = {module.SOURCE.name: module.SOURCE for module in _MODULES}
OWN = "fastseg"
OURS = r"crf\..*"
"""Pattern of keys that only fastseg's networks have: its torchvision-like ones are told by it."""

AUX = "aux_classifier."
ON_BACKBONES = ("deeplabv2", "deeplabv3", "deeplabv3plus", "fcn")


def load_checkpoint(
    model: nn.Module, path: str | Path, *, source: str = "auto", strict: bool = True
) -> LoadReport:
    """Fills one of fastseg's models from a checkpoint of another project or of fastseg.

    Fitting keys do not make the outputs equal: the model's options, such as `dilation_style`, must
    be the source's too; they are in the report. :func:`fastseg.from_checkpoint` builds a model with
    them.

    Args:
        model: a network of ``fastseg.models``; its dtypes and devices stay.
        path: a .safetensors file (which needs the safetensors package), or one that torch.save
            wrote: a state_dict, also inside a training checkpoint, or a fastseg weights file. None
            of its code is run.
        source: "auto" to recognise it by the keys, "fastseg", or a name of ``fastseg.zoo.SOURCES``.
        strict: whether everything must fit. Batch norms' ``num_batches_tracked`` may be absent.

    Returns:
        A report of what was recognised and loaded; with strict=False, also of what was not.

    Raises:
        ValueError: an unknown source.
        FileNotFoundError: there is no such file.
        ImportError: the safetensors package is needed and not installed.
        CheckpointError: the file cannot be read or is of no known source, or, with strict,
            something does not fit; the error lists all missing, unexpected and misshapen keys. The
            model is unchanged.
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
    """Builds the model of a checkpoint, with the options under which its outputs are the source's.

    Classes, backbone, auxiliary head and widths are read from the checkpoint. Options that no shape
    tells, such as rates and `align_corners`, are the source's defaults (``fastseg.zoo.SOURCES``).
    An image must be prepared by the `preprocessing` there, for the source that
    :func:`fastseg.zoo.recognise` names.

    Args:
        path: a .safetensors file (which needs the safetensors package), or one that torch.save
            wrote. None of its code is run.
        model: the builder's name; by default the checkpoint tells it. It is needed for a state_dict
            of fastseg's own that is no weights file; its options come from shapes, or from you.
        source: "auto" to recognise it by the keys, "fastseg", or a name of ``fastseg.zoo.SOURCES``.
        **options: arguments of the builder, which win over the source's; `backbone_options` do so
            one by one. ``aux=False`` leaves an auxiliary head out.

    Returns:
        The model in evaluation mode, float32, on the CPU.

    Raises:
        ValueError: an unknown source or model, or an option out of range.
        TypeError: an option that the model does not have.
        FileNotFoundError: there is no such file.
        ImportError: the safetensors package is needed and not installed.
        CheckpointError: the file cannot be read or is of no known source; the checkpoint is of
            another model; its backbone is none of fastseg's; it does not fit these options: the
            error names options that fit, if changing a few is enough.
    """
    return build(path, model, source=source, **options).model


class Built(NamedTuple):
    """The model of a checkpoint, and what it was taken for.

    Attributes:
        model: the network.
        source: a name of SOURCES, or "fastseg".
        builder: the name of the network's builder.
        metadata: the metadata of one of fastseg's weights files, or None.
    """

    model: SegmentationModel
    source: str
    builder: str
    metadata: dict[str, Any] | None


def build(
    path: str | Path, model: str | None = None, *, source: str = "auto", **options: Any
) -> Built:
    """Does the work of :func:`fastseg.from_checkpoint`, which explains the arguments."""
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
        ours = ", ".join(sorted(BACKBONES))
        raise CheckpointError(f"{name} has a backbone that is none of fastseg's, {ours}: {keys}")
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
    """Builds the model of a state_dict of fastseg's, whose options shapes or the caller tell."""
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
    """Returns the source's name of a checkpoint, or "fastseg", and the builder's name.

    Args:
        path: a .safetensors file, or one that torch.save wrote. None of its code is run.
        source: "auto", "fastseg" or a name of ``fastseg.zoo.SOURCES``; a checkpoint of another one
            is an error.

    Raises:
        ValueError: an unknown source.
        FileNotFoundError: there is no such file.
        CheckpointError: the file cannot be read or is of no known source.
    """
    contents = read(path)
    known, layout = _recognised(contents, source, path, own=lambda: False)
    return known, _builder(contents, layout)


def _builder(contents: Contents, layout: Layout | None) -> str | None:
    return (contents.metadata or {}).get("model") if layout is None else layout.model


def _recognised(
    contents: Contents, source: str, path: str | Path, own: Callable[[], bool]
) -> tuple[str, Layout | None]:
    """Returns the source's name and the network, which is None for fastseg's own.

    Args:
        contents: the checkpoint's contents.
        source: the source's name or "auto".
        path: the file's name in an error.
        own: tells whether a state_dict of no source may be one of fastseg's.
    """
    if source not in ("auto", OWN, *SOURCES):
        names = ", ".join(("auto", OWN, *SOURCES))
        raise ValueError(f"source must be one of {names}, got {source!r}")
    keys = contents.state
    if contents.metadata is not None and source in ("auto", OWN):
        return OWN, None
    told = source == "auto" and not has(keys, OURS)
    for known in (s for s in SOURCES.values() if told or source == s.name):
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
    """Returns why a checkpoint is of no source, and what would load it."""
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
    """Returns the builder's options: the source's, and those that the state_dict tells."""
    told = options_of(layout.model, state)
    further = layout.backbone_options.get(told.get("backbone", ""), {})
    return _merged(layout.options, told, {"backbone_options": further} if further else {})


def _merged(*options: Mapping[str, Any]) -> dict[str, Any]:
    """Merges options, of which later ones win; each of `backbone_options` does so by itself."""
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

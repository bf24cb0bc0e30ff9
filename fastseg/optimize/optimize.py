"""The public functions fastseg.optimize_ and fastseg.restore_."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fastseg.optimize.blocks.swap import Swapped, restore
from fastseg.optimize.plan import Plan
from fastseg.optimize.report import Report, report_of

MODES = ("train", "infer")


def optimize_(
    model: nn.Module,
    *,
    mode: str = "train",
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    dry_run: bool = False,
) -> Report:
    """Lets fastseg's ops compute what they compute faster in a model, in place.

    The model may be any nn.Module, and its own code stays as it is. Patterns are found in blocks of
    torchvision, segmentation_models_pytorch, timm, mmsegmentation and one's own, as neighbours in a
    Sequential or in the forward of a block (by torch.fx; a forward that it cannot follow is left):

    - Conv2d, its BatchNorm2d, an added residual and ReLU, ReLU6, LeakyReLU(0.01), SiLU or Hardswish
      after it become one :func:`fastseg.atrous_conv2d` (odd kernels, any rate, stride and groups,
      also with the "SAME" padding of timm's Conv2dSame and EfficientNet's classes);
    - ASPP with its projection, a block of its own or in the forward of a head, becomes one
      :func:`fastseg.aspp`;
    - MaxPool2d(return_indices=True) whose indices go to a MaxUnpool2d and nowhere else hands on
      byte codes. The unpooled map must be as large as what was pooled was. F.max_pool2d and
      F.max_unpool2d in one forward do the same;
    - BatchNorm2d, ReLU and MaxPool2d become one :func:`fastseg.batch_norm_relu_max_pool2d`;
    - F.interpolate(mode="bilinear") or Upsample, and then argmax(1), max(1)[1] or cross-entropy,
      become one :func:`fastseg.upsample_argmax` or :func:`fastseg.upsample_cross_entropy` if
      nothing else reads the upsampled logits. Both may stand in children, the target may be an
      optional argument, and all options are read in each call.

    Modules stay the same objects with the same parameters and state_dict keys; their classes become
    subclasses. So a model can be copied, pickled, compiled, exported, packaged by AOTInductor (the
    process that loads it imports fastseg), wrapped (DistributedDataParallel; fully_shard, which
    may also come first) and checkpointed as before, and an optimizer goes on. Forward hooks that
    are put later on a module within what was fused are not called.

    In mode "train" gradients and batch statistics are as before. Convolutions for which fastseg has
    the faster kernel run by it, forward and backward; the rest is fused while batch norm is in
    evaluation and no gradient is needed.

    Mode "infer" is for a model in evaluation: batch norms are folded once, into constants.
    load_state_dict() folds them again; other changes of their tensors need ``optimize_`` again.
    train() raises. On the CPU convolutions compute in channels_last, whatever the input's layout,
    and so are outputs; code of the model that calls view() across channels does not run then.

    Args:
        model: the model, which is changed in place.
        mode: "train" or "infer".
        filter_fn: a function of a Conv2d, a pooling or a block whose forward has an ASPP,
            functions of pooling or upsampled logits, and of its name in the model; False leaves
            it. It is asked once.
        dry_run: whether to report only, and change nothing.

    Returns:
        The report, whose str() is a table.

    Raises:
        TypeError: model is no module.
        ValueError: the mode is unknown, is "infer" for a model in training, or the model is
            optimised already.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"optimize_: model must be an nn.Module, got {type(model).__name__}")
    if mode not in MODES:
        raise ValueError(f"optimize_: mode must be one of {MODES}, got {mode!r}")
    if any(isinstance(m, Swapped) for m in model.modules()):
        raise ValueError("optimize_: the model is optimised; fastseg.restore_(model) undoes it")
    if mode == "infer" and any(
        m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d)
    ):
        raise ValueError("optimize_: mode 'infer' folds batch norms: call model.eval() before")
    plan = Plan(model, mode, filter_fn)
    report = report_of(plan, dry_run)
    if not dry_run:
        plan.apply()
    return report


def restore_(model: nn.Module) -> None:
    """Undoes :func:`optimize_`, in place: classes and keys are as they were, weights stay."""
    for module in model.modules():
        restore(module)

"""A user's script, of which a type checker in strict mode must know every type."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fastseg
from fastseg.data import (
    CamVid,
    ChannelImage,
    EvalTransform,
    PictureFormat,
    class_counts,
    median_frequency_weights,
)
from fastseg.metrics import BoundaryF1, BoundaryIoU, ConfusionMatrix, TrimapCurve
from fastseg.models import build_model, builder_options, deeplabv3plus, list_models, segnet, unet
from fastseg.segment import Segmenter
from fastseg.train import Config, Trainer
from fastseg.zoo import SOURCES, LoadReport, recognise


def convolve(x: Tensor, weight: Tensor, pointwise: Tensor, bn: nn.BatchNorm2d) -> Tensor:
    """Runs the convolutions."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    scale, shift = fastseg.fold_batch_norm(bn.weight, bn.bias, bn.running_mean, bn.running_var)
    y = fastseg.atrous_conv2d(x, weight, dilation=6, scale=scale, shift=shift, activation="relu")
    y = fastseg.separable_atrous_conv2d(y, weight, pointwise, dilation=(6, 6))
    branches = [fastseg.ASPPBranch(weight, scale, shift, dilation) for dilation in (6, 12)]
    return fastseg.aspp(y, branches, fastseg.ASPPBranch(pointwise))


def pool(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Runs the poolings."""
    values, codes = fastseg.max_pool2d(x, 2)
    indices = fastseg.codes_to_indices(codes, x.shape[-2:], 2)
    assert torch.equal(fastseg.indices_to_codes(indices, x.shape[-2:], 2), codes)
    fused, codes = fastseg.batch_norm_relu_max_pool2d(x, scale, shift, kernel_size=2)
    return fastseg.max_unpool2d(values + fused, codes, 2, output_size=x.shape[-2:])


def refine(unary: Tensor, image: Tensor, features: Tensor) -> Tensor:
    """Runs the dense CRF."""
    terms = [
        fastseg.PairwiseGaussian(sxy=3, compatibility=3),
        fastseg.PairwiseBilateral(sxy=(80, 80), srgb=13, compatibility=10),
        fastseg.PairwiseFeatures(features, compatibility=1.0, normalization="symmetric"),
    ]
    field = fastseg.MeanField(unary, image, terms)
    lattice = fastseg.PermutohedralLattice(features)
    smooth: Tensor = lattice.filter(unary, normalization="symmetric")
    return fastseg.dense_crf(unary, image, terms, iterations=5) + field.step(5) + smooth


def modules(x: Tensor) -> Tensor:
    """Runs the modules."""
    x = fastseg.nn.AtrousConvBNAct(3, 8, dilation=2)(x)
    x = fastseg.nn.SeparableAtrousConvBNAct(8, 8).forward(x)
    x = fastseg.nn.ASPP(8, (6, 12), 16, separable=True).forward(x)
    values, codes = fastseg.nn.BatchNormReLUMaxPool2d(16).forward(x)
    x = fastseg.nn.MaxUnpool2d(2).forward(values, codes)
    scores = fastseg.nn.ASPPSum(16, 3, (6, 12)).forward(x)
    return fastseg.nn.DenseCRF(num_labels=3, log=True).forward(-scores, x)


def networks(path: str) -> list[nn.Module]:
    """Builds, loads and optimises networks."""
    print(list_models(), builder_options("unet"), sorted(SOURCES))
    model = build_model("deeplabv3", 21, backbone="resnet101")
    report: LoadReport = fastseg.load_checkpoint(model, path)
    source, builder = recognise(path)
    print(report.loaded, source, builder)
    plus = deeplabv3plus(21, backbone="mobilenet_v2", crf=fastseg.nn.DenseCRF(21))
    print(fastseg.load_backbone(plus, path).ignored)
    loaded = fastseg.from_checkpoint(path, output_stride=8)
    print(fastseg.optimize_(loaded, mode="infer"))
    fastseg.restore_(loaded)
    fastseg.empty_cache()
    return [model, plus, loaded, segnet(11), unet(2, upsampling="bilinear")]


def evaluate(folder: str, prediction: Tensor, label: Tensor) -> float:
    """Trains and scores."""
    dataset = CamVid(folder, "val", EvalTransform(360))
    weights = median_frequency_weights(*class_counts(dataset))
    matrix = ConfusionMatrix(len(weights), ignore_index=11)
    matrix.update(prediction, label)
    print(fastseg.confusion_matrix(prediction, label, len(weights), ignore_index=11))
    for metric in (BoundaryF1(11, tolerance=2, unit="pixels"), BoundaryIoU(11), TrimapCurve(11)):
        metric.update(prediction, label)
        scores: dict[str, float] = metric.merge(metric).all_reduce().compute()
        print(scores)
    print(matrix.ious(absent=0), Segmenter.load(None).classes)
    picture: ChannelImage = PictureFormat(13, bands=(4, 3, 2)).read(f"{folder}/tile.tif")
    print(picture.channels, picture.preview().size)
    trainer = Trainer(Config(data=folder, out="runs", epochs=1))
    print(trainer.learning_rate(), fastseg.__version__)
    return matrix.mean_iou()

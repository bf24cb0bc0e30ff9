"""Networks of projects whose checkpoints load, small, in plain torch, with these projects' keys."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conv import aspp_of_torch as plain

RESNET_STRIDES = (1, 2, 1, 1)  # of stages, at output stride 8


def named(**children: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(children))


def conv_bn(ci, co, kernel=3, stride=1, dilation=1, padding=None, groups=1, act=True):
    """OpenMMLab's and kazuto1011's: conv, bn."""
    padding = dilation * (kernel // 2) if padding is None else padding
    conv = nn.Conv2d(ci, co, kernel, stride, padding, dilation, groups, bias=False)
    return named(conv=conv, bn=nn.BatchNorm2d(co), act=nn.ReLU() if act else nn.Identity())


def up(x: Tensor, size, align_corners=False) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


class Milesial(nn.Module):
    def __init__(self, channels, classes, width, bilinear):
        super().__init__()

        def double(ci, co, middle=None):
            middle = middle or co
            layers = []
            for a, b in ((ci, middle), (middle, co)):
                layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
            return named(double_conv=nn.Sequential(*layers))

        widths = [width << i for i in range(5)]
        if bilinear:
            widths[-1] //= 2
        self.inc = double(channels, width)
        for i in range(1, 5):
            down = nn.Sequential(nn.MaxPool2d(2), double(widths[i - 1], widths[i]))
            self.add_module(f"down{i}", named(maxpool_conv=down))
        below = widths[-1]
        for i, skip in enumerate(reversed(widths[:-1]), start=1):
            block = nn.Module()
            if bilinear:
                co = skip // 2 if i < 4 else skip
                block.conv = double(skip + below, co, (skip + below) // 2)
            else:
                co = skip
                block.up = nn.ConvTranspose2d(below, skip, 2, 2)
                block.conv = double(2 * skip, co)
            self.add_module(f"up{i}", block)
            below = co
        self.outc = named(conv=nn.Conv2d(below, classes, 1))
        self.bilinear = bilinear

    def forward(self, x):
        levels = [self.inc(x)]
        for down in (self.down1, self.down2, self.down3, self.down4):
            levels.append(down(levels[-1]))
        y = levels.pop()
        for block in (self.up1, self.up2, self.up3, self.up4):
            skip = levels.pop()
            y = (
                F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=True)
                if (self.bilinear)
                else block.up(y)
            )
            dy, dx = (a - b for a, b in zip(skip.shape[2:], y.shape[2:], strict=True))
            y = F.pad(y, (dx // 2, dx - dx // 2, dy // 2, dy - dy // 2))
            y = block.conv(torch.cat((skip, y), 1))
        return self.outc(y)


class Wkentaro(nn.Module):
    """FCN8s, FCN16s or FCN32s."""

    def __init__(self, classes, stride, width, fc):
        super().__init__()
        self.stride, channels = stride, 3
        for block, (convolutions, factor) in enumerate(
            zip((2, 2, 3, 3, 3), (1, 2, 4, 8, 8), strict=True), start=1
        ):
            for i in range(1, convolutions + 1):
                padding = 100 if (block, i) == (1, 1) else 1
                conv = nn.Conv2d(channels, factor * width, 3, padding=padding)
                self.add_module(f"conv{block}_{i}", conv)
                channels = factor * width
        self.fc6, self.fc7 = nn.Conv2d(channels, fc, 7), nn.Conv2d(fc, fc, 1)
        self.score_fr = nn.Conv2d(fc, classes, 1)
        names = {8: ("upscore2", "upscore_pool4", "upscore8"), 16: ("upscore2", "upscore16")}
        self.names = names.get(stride, ("upscore",))
        for name in self.names:
            s = stride if name == self.names[-1] else 2
            layer = nn.ConvTranspose2d(classes, classes, 2 * s, s, bias=False)
            self.add_module(name, layer)
        if stride < 32:
            self.score_pool4 = nn.Conv2d(8 * width, classes, 1)
        if stride < 16:
            self.score_pool3 = nn.Conv2d(4 * width, classes, 1)

    def forward(self, x):
        y, pools = x, {}
        for block, convolutions in enumerate((2, 2, 3, 3, 3), start=1):
            for i in range(1, convolutions + 1):
                y = getattr(self, f"conv{block}_{i}")(y).relu()
            y = pools[block] = F.max_pool2d(y, 2, 2, ceil_mode=True)
        y = self.score_fr(self.fc7(self.fc6(y).relu()).relu())
        for name, block, crop in zip(self.names[:-1], (4, 3), (5, 9), strict=False):
            y = getattr(self, name)(y)
            skip = getattr(self, f"score_pool{block}")(pools[block])
            y = y + skip[..., crop : crop + y.shape[2], crop : crop + y.shape[3]]
        y = getattr(self, self.names[-1])(y)
        crop = {8: 31, 16: 27, 32: 19}[self.stride]
        return y[..., crop : crop + x.shape[2], crop : crop + x.shape[3]]


class KazutoBlock(nn.Module):
    def __init__(self, ci, width, stride, dilation, first):
        super().__init__()
        co = 4 * width
        self.reduce = conv_bn(ci, width, 1, stride)
        self.conv3x3 = conv_bn(width, width, dilation=dilation)
        self.increase = conv_bn(width, co, 1, act=False)
        self.shortcut = conv_bn(ci, co, 1, stride, act=False) if first else nn.Identity()

    def forward(self, x):
        return (self.increase(self.conv3x3(self.reduce(x))) + self.shortcut(x)).relu()


class Kazuto(nn.Module):
    """DeepLab v2: logits at stride 8."""

    def __init__(self, classes, width, blocks):
        super().__init__()
        self.layer1 = named(
            conv1=conv_bn(3, width, 7, 2), pool=nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        )
        channels = width
        for i, (n, stride, dilation) in enumerate(
            zip(blocks, RESNET_STRIDES, (1, 1, 2, 4), strict=True)
        ):
            layer = nn.Sequential()
            for j in range(n):
                block = KazutoBlock(channels, width << i, stride if j == 0 else 1, dilation, j == 0)
                layer.add_module(f"block{j + 1}", block)
                channels = 4 * (width << i)
            self.add_module(f"layer{i + 2}", layer)
        self.aspp = nn.ModuleDict(
            {
                f"c{i}": nn.Conv2d(channels, classes, 3, padding=rate, dilation=rate)
                for i, rate in enumerate((6, 12, 18, 24))
            }
        )

    def forward(self, x):
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4, self.layer5):
            x = layer(x)
        return sum(conv(x) for conv in self.aspp.values())


class KazutoScales(nn.Module):
    """The maximum over three scales."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, x):
        logits = self.base(x)
        for scale in (0.5, 0.75):
            y = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
            logits = torch.maximum(logits, up(self.base(y), logits.shape[2:]))
        return logits


class MMSegBlock(nn.Module):
    """A bottleneck as torchvision has it."""

    def __init__(self, ci, width, stride, dilation, first):
        super().__init__()
        self.conv1 = nn.Conv2d(ci, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        if first:
            conv = nn.Conv2d(ci, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * width))

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn3(self.conv3(self.bn2(self.conv2(y)).relu()))
        return (y + (self.downsample(x) if hasattr(self, "downsample") else x)).relu()


class MMSegResNet(nn.Module):
    """ResNetV1c at output stride 8; the first block of a stage has half its dilation."""

    def __init__(self, width, blocks):
        super().__init__()
        stem, channels = [], 3
        for co, stride in ((width // 2, 2), (width // 2, 1), (width, 1)):
            stem += [*conv_bn(channels, co, 3, stride)]
            channels = co
        self.stem = nn.Sequential(*stem)
        for i, (n, stride, dilation) in enumerate(
            zip(blocks, RESNET_STRIDES, (1, 1, 2, 4), strict=True)
        ):
            layer = nn.Sequential()
            for j in range(n):
                d = max(1, dilation // 2) if j == 0 else dilation
                layer.append(MMSegBlock(channels, width << i, stride if j == 0 else 1, d, j == 0))
                channels = 4 * (width << i)
            self.add_module(f"layer{i + 1}", layer)

    def forward(self, x):
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        features = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        return features


def mmseg_separable(ci, co, dilation=1):
    return named(
        depthwise_conv=conv_bn(ci, ci, 3, dilation=dilation, groups=ci),
        pointwise_conv=conv_bn(ci, co, 1),
    )


class MMSeg(nn.Module):
    """DeepLabV3 or, with a decoder, DeepLabV3+, and its auxiliary head."""

    def __init__(self, classes, width, blocks, channels, plus):
        super().__init__()
        self.backbone, ci = MMSegResNet(width, blocks), 32 * width
        branch = mmseg_separable if plus else lambda ci, co, d: conv_bn(ci, co, 3, dilation=d)
        head = self.decode_head = nn.Module()
        head.conv_seg = nn.Conv2d(channels, classes, 1)
        head.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_bn(ci, channels, 1))
        head.aspp_modules = nn.ModuleList(
            [conv_bn(ci, channels, 1), *(branch(ci, channels, rate) for rate in (12, 24, 36))]
        )
        head.bottleneck = conv_bn(5 * channels, channels)
        if plus:
            head.c1_bottleneck = conv_bn(4 * width, 48, 1)
            head.sep_bottleneck = nn.Sequential(
                mmseg_separable(channels + 48, channels), mmseg_separable(channels, channels)
            )
        self.auxiliary_head = named(
            convs=nn.Sequential(conv_bn(16 * width, 4 * width)),
            conv_seg=nn.Conv2d(4 * width, classes, 1),
        )

    def forward(self, x):
        low_level, _, aux, y = self.backbone(x)
        head = self.decode_head
        pooled = head.image_pool(y).expand(-1, -1, *y.shape[2:])
        y = head.bottleneck(torch.cat([pooled, *(m(y) for m in head.aspp_modules)], 1))
        if hasattr(head, "sep_bottleneck"):
            y = torch.cat((up(y, low_level.shape[2:]), head.c1_bottleneck(low_level)), 1)
            y = head.sep_bottleneck(y)
        size = x.shape[2:]
        return {"out": up(head.conv_seg(y), size), "aux": up(self.auxiliary_head(aux), size)}


def mobile_channels(channels, factor):
    """Multiples of 8."""
    return max(8, int(channels * factor + 4) // 8 * 8)


class MobileBlock(nn.Module):
    """torchvision's, or VainF's, which pads its input and not what is expanded."""

    def __init__(self, ci, co, stride, dilation, expansion, vainf):
        super().__init__()
        hidden, padding = ci * expansion, 0 if vainf else dilation
        self.adds, self.padding = stride == 1 and ci == co, dilation if vainf else 0

        def layer(a, b, kernel, **options):
            conv = nn.Conv2d(a, b, kernel, bias=False, **options)
            return nn.Sequential(conv, nn.BatchNorm2d(b), nn.ReLU6())

        self.conv = nn.Sequential()
        if expansion != 1:
            self.conv.append(layer(ci, hidden, 1))
        self.conv.append(
            layer(
                hidden, hidden, 3, stride=stride, padding=padding, dilation=dilation, groups=hidden
            )
        )
        self.conv.extend([nn.Conv2d(hidden, co, 1, bias=False), nn.BatchNorm2d(co)])

    def forward(self, x):
        y = self.conv(F.pad(x, (self.padding,) * 4))
        return x + y if self.adds else y


def mobile_features(factor, output_stride, vainf):
    """Without the last convolution; a dilated stage's first block has the dilation before it."""
    channels, stride, dilation = mobile_channels(32, factor), 2, 1
    conv = nn.Conv2d(3, channels, 3, 2, 0 if vainf else 1, bias=False)
    layers = [nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU6())]
    for expansion, co, n, s in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        co, first = mobile_channels(co, factor), dilation
        if stride * s > output_stride:
            dilation, s = dilation * s, 1
        stride *= s
        for i in range(n):
            d = first if i == 0 else dilation
            layers.append(MobileBlock(channels, co, s if i == 0 else 1, d, expansion, vainf))
            channels = co
    return nn.Sequential(*layers), channels


class VainF(nn.Module):
    """DeepLabV3Plus on MobileNetV2."""

    def __init__(self, classes, factor, output_stride, channels, separable):
        super().__init__()
        layers, ci = mobile_features(factor, output_stride, vainf=True)
        # Slices keep their numbers.
        self.backbone = nn.ModuleDict(
            {
                "low_level_features": layers[:4],
                "high_level_features": layers[4:],
            }
        )
        rates = {16: (6, 12, 18), 8: (12, 24, 36)}[output_stride]

        def conv(a, b, rate=1):
            if not separable:
                return nn.Conv2d(a, b, 3, padding=rate, dilation=rate, bias=False)
            first = nn.Conv2d(a, a, 3, padding=rate, dilation=rate, groups=a, bias=False)
            return named(body=nn.Sequential(first, nn.Conv2d(a, b, 1, bias=False)))

        def branch(a, b, rate):
            return nn.Sequential(conv(a, b, rate), nn.BatchNorm2d(b), nn.ReLU())

        self.classifier = named(
            project=plain.conv_bn_relu(mobile_channels(24, factor), 48),
            aspp=plain.ASPP(ci, rates, channels, branch=branch),
            classifier=nn.Sequential(
                conv(channels + 48, channels),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.Conv2d(channels, classes, 1),
            ),
        )

    def forward(self, x):
        features = self.backbone["low_level_features"](x)
        low_level = self.classifier.project(features)
        y = self.classifier.aspp(self.backbone["high_level_features"](features))
        y = torch.cat((low_level, up(y, low_level.shape[2:])), 1)
        return up(self.classifier.classifier(y), x.shape[2:])


class TensorFlow(nn.Module):
    """DeepLab v3 for phones."""

    def __init__(self, classes, factor, channels):
        super().__init__()
        features, ci = mobile_features(factor, 16, vainf=False)
        self.backbone = named(features=features)
        self.classifier = named(
            image_pooling=plain.conv_bn_relu(ci, channels),
            aspp0=plain.conv_bn_relu(ci, channels),
            concat_projection=plain.conv_bn_relu(2 * channels, channels),
            logits=nn.Conv2d(channels, classes, 1),
        )

    def forward(self, x):
        y, head = self.backbone(x), self.classifier
        pooled = head.image_pooling(y.mean((2, 3), keepdim=True)).expand(-1, -1, *y.shape[2:])
        y = head.concat_projection(torch.cat((pooled, head.aspp0(y)), 1))
        return up(head.logits(y), x.shape[2:], align_corners=True)


def settled(model: nn.Module, *size: int) -> nn.Module:
    """In evaluation, with random weights and batch norms as after some training on such images."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 4:
            nn.init.kaiming_normal_(parameter)
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
        else:
            nn.init.uniform_(parameter, 0.8, 1.2)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # the last batch's statistics
    with torch.no_grad():
        model.train()(torch.randn(4, *size))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()

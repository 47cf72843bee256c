"""ResNet-18, ConvNeXt, a U-Net and LeNet, written out: convolutions and their streams."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from architectures.base import NON_ZERO, Architecture, Inputs, Refused, Row, wake


class BasicBlock(nn.Module):
    """Of ResNet-18, as torchvision names it."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """ResNet-18 with narrow stages."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        widths = (4, 6, 8, 10)
        inputs = (4, *widths)
        for i, width in enumerate(widths):
            blocks = [BasicBlock(inputs[i], width, 1 if i == 0 else 2), BasicBlock(width, width, 1)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


class NextBlock(nn.Module):
    """Of ConvNeXt: depthwise convolution, LayerNorm, two layers, layer scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        out = self.dwconv(x).permute(0, 2, 3, 1)
        out = self.gamma * self.pwconv2(self.act(self.pwconv1(self.norm(out))))
        return x + out.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Two stages of one block each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 2, 2)
        self.stem_norm = nn.LayerNorm(6)
        self.block1 = NextBlock(6)
        self.down_norm = nn.LayerNorm(6)
        self.down = nn.Conv2d(6, 8, 2, 2)
        self.block2 = NextBlock(8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.block1(x)
        x = self.down(self.down_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        x = self.block2(x)
        return self.head(self.norm(x.mean((-2, -1))))


class UNet(nn.Module):
    """Two levels, ReLU, skips by concatenation, transposed convolutions up."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(3, 4, 3, padding=1)
        self.down2 = nn.Conv2d(4, 6, 3, padding=1)
        self.middle = nn.Conv2d(6, 8, 3, padding=1)
        self.up2 = nn.ConvTranspose2d(8, 5, 2, 2)
        self.merge2 = nn.Conv2d(6 + 5, 7, 3, padding=1)
        self.up1 = nn.ConvTranspose2d(7, 3, 2, 2)
        self.merge1 = nn.Conv2d(4 + 3, 4, 3, padding=1)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = functional.relu(self.down1(x))
        two = functional.relu(self.down2(functional.max_pool2d(one, 2)))
        x = functional.relu(self.middle(functional.max_pool2d(two, 2)))
        x = functional.relu(self.merge2(torch.cat([two, self.up2(x)], 1)))
        x = functional.relu(self.merge1(torch.cat([one, self.up1(x)], dim=1)))
        return self.out(x)


class LeNet(nn.Module):
    """As in tutorials."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3)
        self.conv2 = nn.Conv2d(6, 8, 3)
        self.fc1 = nn.Linear(8 * 2 * 2, 12)
        self.fc2 = nn.Linear(12, 9)
        self.fc3 = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = x.view(-1, 32)
        return self.fc3(functional.relu(self.fc2(functional.relu(self.fc1(x)))))


def _image(side: int) -> Any:
    return lambda dtype: (Inputs(dtype).normal(2, 3, side, side),)


def _calls(side: int) -> Any:
    return {"plain": lambda model, given: model(given.normal(given.batch, 3, side, side))}


def scaled(what: str, size: int, moves: str, layers: int = 1) -> tuple[Row, Row]:
    """Positive scaling and permutation of the same units."""
    return (
        Row(what, "positive scaling", size, moves, layers=layers),
        Row(what, "permutation", size, moves, layers=layers),
    )


_all = "{weight,bias,running_mean,running_var}"


def _stage(stage: int, width: int, follows: str) -> tuple[Row, ...]:
    """The streams and blocks of one stage of ResNet-18.

    Args:
        stage: from 1.
        width: of it.
        follows: what reads its stream in the next stage.
    """
    path = f"layer{stage}."
    first = ("conv1", "bn1") if stage == 1 else (f"{path}0.downsample.0", f"{path}0.downsample.1")
    affine = f"{first[1]}.{{weight,bias}} {path}{{0,1}}.bn2.{{weight,bias}}"
    inside = f"{path}{{0,1}}.conv1.weight" if stage == 1 else f"{path}1.conv1.weight"
    whole = (
        f"{first[0]}.weight {first[1]}.{_all} {path}{{0,1}}.conv2.weight {path}{{0,1}}.bn2.{_all}"
    )
    block = f"{path}#.bn1.{{weight,bias}} {path}#.conv2.weight"
    relabelled = f"{path}#.conv1.weight {path}#.bn1.{_all} {path}#.conv2.weight"
    return (
        Row("stream of a stage", "positive scaling", width, f"{affine} {inside} {follows}"),
        Row("stream of a stage", "permutation", width, f"{whole} {inside} {follows}"),
        Row("inside a block", "positive scaling", width, block, layers=2),
        Row("inside a block", "permutation", width, relabelled, layers=2),
    )


def _next(stage: int) -> str:
    return f"layer{stage}.0.conv1.weight layer{stage}.0.downsample.0.weight"


def _next_block(path: str, width: int) -> tuple[Row, ...]:
    inner = f"{path}.pwconv1.{{weight,bias}} {path}.pwconv2.weight"
    norm = f"{path}.norm.{{weight,bias}} {path}.pwconv1.weight"
    scale = f"{path}.pwconv2.{{weight,bias}} {path}.gamma"
    return (
        Row(
            "norm, layers of a block",
            NON_ZERO,
            width,
            norm,
        ),
        Row("layer scale", NON_ZERO, width, scale),
        Row("hidden units (GELU)", "permutation", 4 * width, inner),
        Row("what LayerNorm centres", "translation", 0, f"{path}.dwconv.bias"),
    )


def _stream(path: str) -> str:
    names = ("dwconv", "norm", "pwconv2")
    return (
        " ".join(f"{path}.{name}.{{weight,bias}}" for name in names)
        + f" {path}.pwconv1.weight {path}.gamma"
    )


VISION = (
    Architecture(
        "ResNet-18",
        lambda: wake(ResNet()),
        _image(32),
        _calls(32),
        (
            *_stage(1, 4, _next(2)),
            *_stage(2, 6, _next(3)),
            *_stage(3, 8, _next(4)),
            *_stage(4, 10, "fc.weight"),
        ),
        (Refused("scale of a convolution before BatchNorm", "(layer.*)?conv", "BatchNorm"),),
        says="BatchNorm takes out a scale only up to its eps",
    ),
    Architecture(
        "ConvNeXt",
        lambda: wake(ConvNeXt()),
        _image(8),
        _calls(8),
        (
            *_next_block("block1", 6),
            *_next_block("block2", 8),
            Row("norm, layers between stages", NON_ZERO, 6, "down_norm.{weight,bias} down.weight"),
            Row("last norm, head", NON_ZERO, 8, "norm.{weight,bias} head.weight"),
            Row("what LayerNorm centres", "translation", 0, "stem.{weight,bias}"),
            Row(
                "stream of a stage",
                "permutation",
                6,
                f"stem.{{weight,bias}} stem_norm.{{weight,bias}} {_stream('block1')} "
                "down_norm.{weight,bias} down.weight",
            ),
            Row(
                "stream of a stage",
                "permutation",
                8,
                f"down.{{weight,bias}} {_stream('block2')} norm.{{weight,bias}} head.weight",
            ),
        ),
    ),
    Architecture(
        "U-Net",
        lambda: wake(UNet()),
        _image(8),
        _calls(8),
        (
            *scaled("channels, skips too", 4, "down1.{weight,bias} {down2,merge1}.weight"),
            *scaled("channels, skips too", 6, "down2.{weight,bias} {middle,merge2}.weight"),
            *scaled("channels", 8, "middle.{weight,bias} up2.weight"),
            *scaled("channels", 7, "merge2.{weight,bias} up1.weight"),
            *scaled("channels", 4, "merge1.{weight,bias} out.weight"),
            Row("up, its part of a merge", "general linear", 5, "up2.{weight,bias} merge2.weight"),
            Row("up, its part of a merge", "general linear", 3, "up1.{weight,bias} merge1.weight"),
        ),
    ),
    Architecture(
        "LeNet",
        lambda: wake(LeNet()),
        _image(16),
        _calls(16),
        (
            *scaled("channels", 6, "conv1.{weight,bias} conv2.weight"),
            *scaled("channels", 8, "conv2.{weight,bias} fc1.weight"),
            *scaled("hidden units (ReLU)", 12, "fc1.{weight,bias} fc2.weight"),
            *scaled("hidden units (ReLU)", 9, "fc2.{weight,bias} fc3.weight"),
        ),
    ),
)

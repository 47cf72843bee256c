"""The networks: of images [N, pixels], small enough for a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

CLASSES = 10


class _Square(nn.Module):
    """Rows of pixels as images of one channel."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """[N, side * side] -> [N, 1, side, side]."""
        return x.unflatten(1, (1, self.side, self.side))


def mlp(pixels: int, width: int) -> nn.Module:
    """Two hidden layers of ReLU."""
    return nn.Sequential(
        nn.Linear(pixels, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, CLASSES),
    )


def vgg(pixels: int, width: int) -> nn.Module:
    """Two stages of two convolutions with BatchNorm, of ``width`` and twice as many channels."""
    side = round(pixels**0.5)
    layers: list[nn.Module] = [_Square(side)]
    before = 1
    for channels in (width, 2 * width):
        for _ in range(2):
            layers += [
                nn.Conv2d(before, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
            before = channels
        layers.append(nn.MaxPool2d(2))
    last = 2 * width * (side // 4) ** 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(last, CLASSES))


class _Block(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))), norms first as in PreResNet."""

    def __init__(self, channels: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([norm(channels), norm(channels)])

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W], the same shape."""
        y = self.first(self.norms[0](x).relu())
        return x + self.second(self.norms[1](y).relu())


class _ResNet(nn.Module):
    def __init__(self, side: int, width: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.square = _Square(side)
        self.stem = nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False)
        self.low = _Block(width, norm)
        self.between = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.high = _Block(2 * width, norm)
        self.norm = norm(2 * width)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """[N, pixels] -> [N, 10]."""
        x = self.low(self.stem(self.square(x)))
        x = self.high(self.between(x))
        return self.head(self.norm(x).relu().mean((-2, -1)))


class _OverChannels(nn.LayerNorm):
    """LayerNorm over the channels of each position."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W], the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def resnet_batch(pixels: int, width: int) -> nn.Module:
    """Two stages of one block, on two residual streams, with BatchNorm."""
    return _ResNet(round(pixels**0.5), width, nn.BatchNorm2d)


def resnet_layer(pixels: int, width: int) -> nn.Module:
    """The same with LayerNorm over the channels of each position."""
    return _ResNet(round(pixels**0.5), width, _OverChannels)


class _Layer(nn.Module):
    """A block of a transformer, norms first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, tokens, width], the same shape."""
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.down(self.up(self.norms[1](x)).relu())


class _Transformer(nn.Module):
    def __init__(self, side: int, width: int, heads: int = 2) -> None:
        super().__init__()
        self.side = side
        self.embed = nn.Linear(side, width)
        self.places = nn.Embedding(side, width)
        self.blocks = nn.ModuleList([_Layer(width, heads) for _ in range(2)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """[N, pixels] -> [N, 10]."""
        x = self.embed(x.unflatten(1, (self.side, self.side))) + self.places.weight
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def transformer(pixels: int, width: int) -> nn.Module:
    """Two blocks; a row of pixels is a token."""
    return _Transformer(round(pixels**0.5), width)


@dataclass(frozen=True)
class Network:
    """One of them at one width."""

    name: str
    build: Callable[[int, int], nn.Module]
    width: int
    adam: bool = False
    """Whether its ends are trained by Adam; else by SGD with momentum."""

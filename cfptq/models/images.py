"""Reference networks for images, classifiers and an autoencoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cfptq.errors import ModelError

#: Sides of images are halved twice by ``SmallCNN`` and ``Autoencoder``.
HALVINGS = 2


class SmallCNN(nn.Module):
    """Classifier with two convolutions, each with pooling, one hidden layer, and ``head``.

    Args:
        channels: channels of the images.
        side: height and width of the images, a multiple of 4.
        classes: number of classes C, at least 2.
        widths: channels of the two convolutions and units of the hidden layer.
        batch_norm: put BatchNorm after each convolution.
        seed: seed of the initial weights. The global random state is not changed.

    Raises:
        ModelError: a size is not allowed.
    """

    def __init__(
        self, channels: int = 1, side: int = 28, classes: int = 10, *, widths: tuple[int, int, int] = (8, 16, 64), batch_norm: bool = False,
        seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        _check_sizes(channels, side, *widths)
        if classes < 2:
            raise ModelError(f"classes must be at least 2, got {classes}.")
        with _seeded(seed):
            self.features = nn.Sequential(
                nn.Conv2d(channels, widths[0], 3, padding=1), _norm(widths[0], batch_norm), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(widths[0], widths[1], 3, padding=1), _norm(widths[1], batch_norm), nn.ReLU(), nn.MaxPool2d(2),
            )  # fmt: skip
            self.hidden = nn.Linear(widths[1] * (side // 4) ** 2, widths[2])
            self.head = nn.Linear(widths[2], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (N, C) of images (N, channels, side, side)."""
        logits: Tensor = self.head(torch.relu(self.hidden(self.features(x).flatten(1))))
        return logits


class _Block(nn.Module):
    """Two convolutions with BatchNorm, and the input added to them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        is_same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity() if is_same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's output."""
        above = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(above + self.shortcut(x))


class ResNet18(nn.Module):
    """Residual network with 18 layers for small images (He et al., 2016), a 3×3 stem without pooling and four stages of two blocks.

    Args:
        channels: channels of the images.
        classes: number of classes C, at least 2.
        width: channels of the first stage; each further stage doubles them. 64 is the published width.
        seed: seed of the initial weights. The global random state is not changed.

    Raises:
        ModelError: a size is below 1, or there are fewer than two classes.
    """

    def __init__(self, channels: int = 1, classes: int = 10, *, width: int = 64, seed: int = 0) -> None:
        super().__init__()
        _check_sizes(channels, 4, width)
        if classes < 2:
            raise ModelError(f"classes must be at least 2, got {classes}.")
        with _seeded(seed):
            self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
            blocks: list[nn.Module] = []
            inputs = width
            for stage in range(4):
                outputs = width * 2**stage
                blocks += [_Block(inputs, outputs, 1 if stage == 0 else 2), _Block(outputs, outputs, 1)]
                inputs = outputs
            self.blocks = nn.Sequential(*blocks)
            self.head = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (N, C) of images (N, channels, height, width)."""
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


class Autoencoder(nn.Module):
    """Convolutional autoencoder with an ``encoder`` to codes (N, k) and a ``decoder`` to images with values in [0, 1].

    Args:
        channels: channels of the images.
        side: height and width of the images, a multiple of 4.
        code: number of values of a code, k.
        widths: channels of the two convolutions.
        seed: seed of the initial weights. The global random state is not changed.

    Raises:
        ModelError: a size is not allowed.
    """

    def __init__(self, channels: int = 1, side: int = 28, code: int = 16, *, widths: tuple[int, int] = (8, 16), seed: int = 0) -> None:
        super().__init__()
        _check_sizes(channels, side, code, *widths)
        small, (first, second) = side // 4, widths
        with _seeded(seed):
            self.encoder = nn.Sequential(
                nn.Conv2d(channels, first, 3, 2, 1), nn.ReLU(), nn.Conv2d(first, second, 3, 2, 1), nn.ReLU(), nn.Flatten(),
                nn.Linear(second * small**2, code),
            )  # fmt: skip
            self.decoder = nn.Sequential(
                nn.Linear(code, second * small**2), nn.ReLU(), nn.Unflatten(1, (second, small, small)), nn.Upsample(scale_factor=2),
                nn.Conv2d(second, first, 3, 1, 1), nn.ReLU(), nn.Upsample(scale_factor=2),
                nn.Conv2d(first, channels, 3, 1, 1), nn.Sigmoid(),
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstructions of images."""
        images: Tensor = self.decoder(self.encoder(x))
        return images


def _norm(width: int, batch_norm: bool) -> nn.Module:
    return nn.BatchNorm2d(width) if batch_norm else nn.Identity()


def _check_sizes(channels: int, side: int, *widths: int) -> None:
    if channels < 1 or side < 4 or side % 2**HALVINGS or any(width < 1 for width in widths):
        raise ModelError(
            "An image network must have at least one channel and one unit per layer, and a side that is a multiple of 4, got "
            f"channels={channels}, side={side} and widths {list(widths)}."
        )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw initial weights from ``seed``, and leave the global random state as it was."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)

"""A small convolutional network for images of any size."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from isthmus.nets.initial import drawn
from isthmus.nets.paired import PairedHead

STEM = (16, 32)  # channels before the last stage


def cnn(channels: int, width: int, outputs: int, *, paired: bool = True, seed: int = 0) -> nn.Sequential:
    """Two stages, each halving the image, a third one, and ``fc`` on its means; mirror ``stage3``.

    A stage is a 3 x 3 convolution, BatchNorm and ReLU.

    Args:
        channels: of an image.
        width: m, channels of the last stage; even if the head is paired.
        outputs: K.
        paired: with a paired head; else one Linear layer.
        seed: of the weights.

    Raises:
        WidthError: the width is odd and the head paired.
    """

    def build() -> nn.Sequential:
        first, second = STEM
        return nn.Sequential(
            OrderedDict[str, nn.Module](
                stage1=nn.Sequential(*_stage(channels, first), nn.MaxPool2d(2)),
                stage2=nn.Sequential(*_stage(first, second), nn.MaxPool2d(2)),
                stage3=nn.Sequential(*_stage(second, width)),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                fc=(PairedHead if paired else nn.Linear)(width, outputs),
            )
        )

    return drawn(build, seed)


def _stage(taken: int, given: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(taken, given, 3, padding=1, bias=False), nn.BatchNorm2d(given), nn.ReLU()

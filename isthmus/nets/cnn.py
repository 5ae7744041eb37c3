"""A small convolutional network for images of any size."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from isthmus.nets.initial import drawn
from isthmus.nets.means import Means
from isthmus.nets.mirrored import MirroredConv2d
from isthmus.nets.paired import PairedHead

STEM = (16, 32)  # channels before the last stage


def cnn(channels: int, width: int, outputs: int, *, paired: bool = True, seed: int = 0) -> nn.Sequential:
    """Two stages, each halving the image, a third one, and ``fc`` on its means.

    A stage is a 3 x 3 convolution, BatchNorm and ReLU. If paired, ``stage3`` begins mirrored.

    Args:
        channels: of an image.
        width: m, channels of the last stage; even if the head is paired.
        outputs: K.
        paired: with a paired head, so that the output begins as 0; else one Linear layer.
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
                stage3=nn.Sequential(*_stage(second, width, MirroredConv2d if paired else nn.Conv2d)),
                pool=Means(),
                flatten=nn.Flatten(),
                fc=(PairedHead if paired else nn.Linear)(width, outputs),
            )
        )

    return drawn(build, seed)


def _stage(taken: int, given: int, conv: type[nn.Conv2d] = nn.Conv2d) -> tuple[nn.Module, ...]:
    return conv(taken, given, 3, padding=1, bias=False), nn.BatchNorm2d(given), nn.ReLU()

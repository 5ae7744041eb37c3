"""ResNet-18 with a last stage of any width (He et al. 2016), its layers named as torchvision names them."""

from __future__ import annotations

from torch import Tensor, nn

from isthmus.nets.initial import drawn
from isthmus.nets.means import Means
from isthmus.nets.mirrored import MirroredConv2d
from isthmus.nets.paired import PairedHead

STAGES = (64, 128, 256)  # widths of layer1 to layer3; that of layer4 is chosen


class BasicBlock(nn.Module):
    """ReLU(f(x) + x), with f two 3 x 3 convolutions, and x convolved (1 x 1) where its shape changes.

    Args:
        taken: input channels.
        given: output channels.
        stride: of the first convolution.
        conv: the kind of convolution.
    """

    def __init__(self, taken: int, given: int, stride: int, conv: type[nn.Conv2d] = nn.Conv2d) -> None:
        super().__init__()
        self.conv1 = conv(taken, given, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(given)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv(given, given, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(given)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or taken != given:
            self.downsample = nn.Sequential(conv(taken, given, 1, stride, bias=False), nn.BatchNorm2d(given))

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, taken, H, W] to [N, given, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + shortcut)


class ResNet18(nn.Module):
    """Four stages of two blocks, ``layer1`` to ``layer4``, and ``fc`` on the means of channels.

    Args:
        outputs: K.
        width: m, channels of ``layer4``; even if the head is paired.
        paired: with a paired head, so that the output begins as 0; else one Linear layer.
        small_images: begin with a 3 x 3 convolution and no pooling, as is usual for images of 32 x 32.
    """

    def __init__(self, outputs: int, width: int, *, paired: bool, small_images: bool) -> None:
        super().__init__()
        first, *_ = STAGES
        self.conv1 = (
            nn.Conv2d(3, first, 3, padding=1, bias=False)
            if small_images
            else nn.Conv2d(3, first, 7, 2, padding=3, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, 2, padding=1)
        taken = first
        for index, given in enumerate((*STAGES, width), start=1):
            conv = MirroredConv2d if paired and index > len(STAGES) else nn.Conv2d
            first_block = BasicBlock(taken, given, 1 if index == 1 else 2, conv)
            stage = nn.Sequential(first_block, BasicBlock(given, given, 1, conv))
            self.add_module(f"layer{index}", stage)
            taken = given
        self.avgpool = Means()
        self.fc = (PairedHead if paired else nn.Linear)(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] to outputs [N, K]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for index in range(len(STAGES) + 1):
            x = self.get_submodule(f"layer{index + 1}")(x)
        return self.fc(self.avgpool(x).flatten(1))


def resnet18(
    outputs: int = 1000,
    *,
    width: int = 512,
    paired: bool = True,
    small_images: bool = False,
    seed: int = 0,
) -> ResNet18:
    """A ResNet-18; if paired, ``layer4`` begins mirrored.

    With width 512 and ``paired=False`` its state dict is that of torchvision's ``resnet18``.

    Args:
        outputs: K.
        width: m, channels of the last stage, 512 in the original; even if the head is paired.
        paired: with a paired head, so that the output begins as 0; else one Linear layer.
        small_images: begin with a 3 x 3 convolution and no pooling, as is usual for images of 32 x 32.
        seed: of the weights.

    Raises:
        WidthError: the width is odd and the head paired.

    Source: Zhang et al. 2021, Section 5.2 and Appendix H.1.
    """
    return drawn(lambda: ResNet18(outputs, width, paired=paired, small_images=small_images), seed)

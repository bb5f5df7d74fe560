"""The networks of this study's own make; all but DeepLabV2."""

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def conv_norm(inputs: int, outputs: int, size: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU; the padding keeps the size (divided by the stride)."""
    padding = dilation * (size // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding, dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.first = conv_norm(inputs, outputs, 3, stride, dilation)
        self.second = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, 1, dilation, dilation, bias=False), nn.BatchNorm2d(outputs)
        )
        self.shortcut = nn.Identity() if inputs == outputs and stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class ContextHead(nn.Module):
    """DeepLabV3+'s head in short: dilated branches and the image's mean, joined with a finer map."""

    def __init__(self, deep: int, fine: int, width: int, num_classes: int, dilations: tuple[int, ...] = (1, 4, 8)):
        super().__init__()
        self.branches = nn.ModuleList(conv_norm(deep, width, 3, 1, d) for d in dilations)
        self.mean = nn.Conv2d(deep, width, 1)  # no norm: a batch of one image has one value a channel here
        self.join = conv_norm(width * (len(dilations) + 1), width, 1)
        self.fine = conv_norm(fine, width // 2, 1)
        self.out = nn.Sequential(conv_norm(width + width // 2, width), nn.Conv2d(width, num_classes, 1))

    def forward(self, deep: Tensor, fine: Tensor) -> Tensor:
        mean = F.relu(self.mean(deep.mean((2, 3), keepdim=True))).expand(-1, -1, *deep.shape[-2:])
        x = self.join(torch.cat([branch(deep) for branch in self.branches] + [mean], dim=1))
        x = F.interpolate(x, fine.shape[-2:], mode="bilinear", align_corners=False)
        return self.out(torch.cat([x, self.fine(fine)], dim=1))


class DeepLabSmall(nn.Module):
    """The default: a residual network for 128x256 images that trains from scratch on a laptop."""

    def __init__(self, num_classes: int, width: int = 32):
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.stem = conv_norm(3, width, 3, 2)
        self.fine = nn.Sequential(Residual(width, width * 2, 2), Residual(width * 2, width * 2))  # stride 4
        self.deep = nn.Sequential(  # stride 8
            Residual(width * 2, width * 4, 2),
            Residual(width * 4, width * 4),
            Residual(width * 4, width * 4, dilation=2),
            Residual(width * 4, width * 4, dilation=4),
        )
        self.head = ContextHead(width * 4, width * 2, width * 2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.fine(self.stem((images - self.mean) / self.std))
        logits = self.head(self.deep(fine), fine)
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)


class Depthwise(nn.Conv2d):
    """A depthwise convolution that a CPU never computes in bf16: its kernels take three times as long."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.to(self.weight.dtype))


class DeepLabMobileNetV2(nn.Module):
    """torchvision's MobileNetV2 at its own stride of 32, its maps of stride 32 and 16 under the same head, joined with
    that of stride 4."""

    def __init__(self, num_classes: int, imagenet: bool = False):
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        weights = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1 if imagenet else None
        features = torchvision.models.mobilenet_v2(weights=weights).features[:-1]  # the last 1x1 to 1280 is left out
        for conv in features.modules():
            if isinstance(conv, nn.Conv2d) and conv.groups > 1:
                conv.__class__ = Depthwise
        self.fine, self.middle, self.deep = features[:4], features[4:14], features[14:]
        self.head = ContextHead(320 + 96, 24, 64, num_classes, dilations=(1, 2, 4))

    def forward(self, images: Tensor) -> Tensor:
        fine = self.fine((images - self.mean) / self.std)
        middle = self.middle(fine)
        deep = F.interpolate(self.deep(middle), middle.shape[-2:], mode="bilinear", align_corners=False)
        logits = self.head(torch.cat([deep, middle], dim=1), fine)
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)

"""DeepLabV2 on ResNet-101 in the layout, names and input format of the public checkpoints."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet101_Weights

CAFFE_BGR_MEAN = (104.00698793, 116.66876762, 122.67891434)  # of the public weights, on 0 .. 255


class Bottleneck(nn.Module):
    """ResNet bottleneck with the stride on the first 1x1 convolution, as in the public DeepLabV2 weights."""

    def __init__(self, inputs: int, planes: int, stride: int = 1, dilation: int = 1, project: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.downsample = None
        if project:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, planes * 4, 1, stride, bias=False), nn.BatchNorm2d(planes * 4)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class SummedBranches(nn.Module):
    """Parallel dilated 3x3 convolutions, summed over the first ``used`` branches.

    The public checkpoints hold four branches, but their training summed the first two only; the other two
    are kept so that the weights load, and are never trained.
    """

    def __init__(self, inputs: int, num_classes: int, used: int):
        super().__init__()
        self.conv2d_list = nn.ModuleList(
            nn.Conv2d(inputs, num_classes, 3, padding=d, dilation=d) for d in (6, 12, 18, 24)
        )
        self.used = used
        for i, conv in enumerate(self.conv2d_list):
            nn.init.normal_(conv.weight, 0, 0.01)
            conv.requires_grad_(i < used)

    def forward(self, x: Tensor) -> Tensor:
        return sum(conv(x) for conv in self.conv2d_list[: self.used])


class DeepLabV2(nn.Module):
    """DeepLabV2 on ResNet-101, output stride 8, in the layout and names of the public checkpoints.

    Args:
        num_classes: number of classes.
        branches: 2 for the public checkpoints, 4 for the classifier as the paper describes it.
        imagenet: begin with torchvision's weights, from its cache (TORCH_HOME) or downloaded once.

    Source: Chen et al., DeepLab (PAMI 2018); Tsai et al., AdaptSegNet (CVPR 2018) for names and input.
    """

    def __init__(self, num_classes: int, branches: int, imagenet: bool = False):
        super().__init__()
        self.register_buffer("bgr_mean", torch.tensor(CAFFE_BGR_MEAN).view(1, 3, 1, 1), persistent=False)
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        inputs = 64
        layout = ((64, 3, 1, 1), (128, 4, 2, 1), (256, 23, 1, 2), (512, 3, 1, 4))
        for i, (planes, blocks, stride, dilation) in enumerate(layout, start=1):
            layer = [Bottleneck(inputs, planes, stride, dilation, project=True)]
            layer += [Bottleneck(planes * 4, planes, 1, dilation) for _ in range(blocks - 1)]
            setattr(self, f"layer{i}", nn.Sequential(*layer))
            inputs = planes * 4
        self.layer5 = SummedBranches(inputs, num_classes, branches)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):  # scale and shift stay as they were, as published
                module.requires_grad_(False)
        if imagenet:
            state = ResNet101_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
            self.load_state_dict(from_torchvision(state), strict=False)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flip(1) * 255 - self.bgr_mean
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer5(self.layer4(self.layer3(self.layer2(self.layer1(x)))))
        return F.interpolate(x, images.shape[-2:], mode="bilinear", align_corners=True)


def from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """ResNet-101's weights of torchvision in the names and for the input of :class:`DeepLabV2`.

    torchvision's network sees ``(RGB - mean) / std``, ours ``255 BGR - Caffe's mean``: the first convolution is turned
    and scaled, and the difference of the means goes into the batch norm behind it, so that away from the border the
    first layer answers alike. The stride sits on another convolution of three bottlenecks here, as in the public
    DeepLabV2; training has to make up for that.

    Args:
        state: state_dict of ``torchvision.models.resnet101``.

    Returns:
        A state_dict without classifier.
    """
    weights = ResNet101_Weights.IMAGENET1K_V1.transforms()
    mean, std = torch.tensor(weights.mean), torch.tensor(weights.std)
    state = {name: value.clone() for name, value in state.items() if not name.startswith("fc.")}
    first = state["conv1.weight"]
    shift = (torch.tensor(CAFFE_BGR_MEAN).flip(0) / 255 - mean) / std  # what our zero is to torchvision's network
    state["bn1.running_mean"] -= (first.sum((2, 3)) * shift).sum(1)
    state["conv1.weight"] = (first / (255 * std.view(1, 3, 1, 1))).flip(1)
    return state

"""A small convolutional trunk with a head for each of the two digits."""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.multi_digits.digits import NUM_CLASSES, SIDE, TASKS


class Network(nn.Module):
    """LeNet's shape at the size of these images.

    Args:
        num_channels: of the first convolution; the second has twice as many, and the features that
            the heads share are four times as many.

    Example:
        >>> import torch
        >>> logits = Network(2)(torch.zeros(3, 1, 12, 12))
        >>> len(logits), logits[0].shape
        (2, torch.Size([3, 10]))

    Source: Yann LeCun, Léon Bottou, Yoshua Bengio and Patrick Haffner, "Gradient-based learning
    applied to document recognition", 1998; with two heads, Ozan Sener and Vladlen Koltun,
    "Multi-Task Learning as Multi-Objective Optimization", 2018.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        num_features = 4 * num_channels
        self.trunk = nn.Sequential(
            nn.Conv2d(1, num_channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(num_channels, 2 * num_channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * num_channels * (SIDE // 4) ** 2, num_features),
            nn.ReLU(),
        )
        self.heads = nn.ModuleList(nn.Linear(num_features, NUM_CLASSES) for _ in TASKS)

    def forward(self, images: Tensor) -> list[Tensor]:  # [B, 1, 12, 12] -> 2 of [B, 10]
        features = self.trunk(images)
        return [head(features) for head in self.heads]

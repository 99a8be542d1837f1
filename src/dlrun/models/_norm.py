"""Batch normalisation of vectors that also takes a batch of one sample."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm1d(nn.BatchNorm1d):
    """`nn.BatchNorm1d`, except that a training batch of one sample, which has no variance, is normalised with the
    running statistics and leaves them as they are: the last batch of an epoch may be that small.

    Source: Ioffe & Szegedy (2015), algorithms 1 and 2.

    Shapes: (N, D) -> (N, D).
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)

"""`model=gaussian_classifier`: classes as Gaussians of one covariance."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from dlrun.models import MODELS
from dlrun.models._init import Init
from dlrun.models.linear import Linear
from dlrun.registry import ConfigError


@MODELS.register("gaussian_classifier")
class GaussianClassifier(Linear):
    """An affine map whose softmax (or sigmoid) is the posterior of the class, if the inputs of class k are N(μ_k, Σ):
    w_k = Σ^-1 μ_k, b_k = log P(k) - μ_k^T Σ^-1 μ_k / 2; of two classes with one output, the difference of the two.

    `optimizer=closed_form` takes the means, the shared covariance and the shares of the classes from the training set: linear
    discriminant analysis. By gradients it is trained like `model=linear`, of which it then is nothing but another name.

    Source: Bishop (2006), sections 4.2.1 and 4.2.2.

    Args:
        input_shape: shape of one input; given by the data.
        num_outputs: size of the raw output; given by the loss: 1 for bce, one for each class for ce.
        init: initialisation of the weights; biases start at 0.

    Shapes: (N, *input_shape) -> (N, num_outputs).
    """

    solves: ClassVar[frozenset[str]] = frozenset({"bce", "ce"})

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int, *, init: Init = "glorot_uniform") -> None:
        super().__init__(input_shape, num_outputs, init=init)

    def solve(self, inputs: Tensor, targets: Tensor, decay: float = 0.0) -> None:
        """Sets the weights and biases from the estimates of maximum likelihood; features that never vary get the weight 0.

        Args:
            inputs: (N, *input_shape).
            targets: int64 (N,), numbers of classes.
            decay: must be 0: there is no such term in the likelihood of the inputs.

        Raises:
            ConfigError: a class without samples, targets that are no classes, or a decay.
        """
        if decay:
            raise ConfigError(
                "optimizer.name: closed_form solves gaussian_classifier without penalties; leave out regularization=l2 and "
                "optimizer.weight_decay, or train model=linear with optimizer=adam"
            )
        if targets.dim() != 1:
            raise ConfigError("model.name: gaussian_classifier needs one class per sample, not several labels")
        x, y = inputs.detach().flatten(1).double().cpu(), targets.cpu()
        classes = max(2, self.head.out_features)
        counts = torch.bincount(y, minlength=classes)
        if empty := (counts == 0).nonzero().flatten().tolist():
            raise ConfigError(f"data: no training sample of class {empty[0]}, of which a Gaussian is to be estimated")
        means = torch.zeros(classes, x.shape[1], dtype=x.dtype).index_add_(0, y, x) / counts[:, None]
        centred = x - means[y]
        covariance = centred.T @ centred / len(x)
        weights = means @ torch.linalg.pinv(covariance, hermitian=True)  # (classes, inputs)
        biases = (counts / len(x)).double().log() - 0.5 * (weights * means).sum(1)
        parameters = torch.cat([weights, biases[:, None]], 1)
        self.set(parameters if self.head.out_features > 1 else parameters[1:] - parameters[:1])

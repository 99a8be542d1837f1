from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Gt
from torch import Tensor

from dlrun.data._transform import TRANSFORMS, Transform, flat_size, from_text, refuse, to_text

LARGEST = 4096  # features, whose covariance is decomposed: 128 MiB, and about 20 s


@TRANSFORMS.register("pca")
class PCA(Transform):
    """Coordinates along the directions of largest variance (principal components) of the training samples.

    The training mean is subtracted; of a direction and its opposite, that whose largest entry is positive is taken. With
    `data.normalize=standardize` the coordinates are afterwards divided by their standard deviations, which is
    whitening; `data.normalize=unit` leaves them as they are. Images are flattened.

    Source: Pearson (1901), "On lines and planes of closest fit to systems of points in space"; covariance with 1/N.

    Args:
        input_shape: shape of one input; given by the data.
        components: number of directions kept.
        whiten: divide each coordinate by its standard deviation over the training samples.

    Shapes: (N, *input_shape) -> (N, components).

    Raises:
        ConfigError: more components than the training samples have directions, or more than 4,096 features.
    """

    def __init__(
        self, input_shape: tuple[int, ...], *, components: Annotated[int, Gt(0)] = 2, whiten: bool = False
    ) -> None:
        inputs = flat_size(input_shape)
        if inputs > LARGEST:
            raise refuse("pca", f"takes at most {LARGEST:,} features, but inputs have {inputs:,}")
        if components > inputs:
            raise refuse("pca.components", f"got {components}; at most {inputs}, the number of features")
        self.size, self.whiten = components, whiten
        self.mean = torch.zeros(inputs, dtype=torch.float64)
        self.directions = torch.zeros(inputs, components, dtype=torch.float64)
        self.variances = torch.ones(components, dtype=torch.float64)

    def fit(self, chunks: Iterable[Tensor]) -> None:
        count = sum(len(chunk) for chunk in chunks)
        self.mean = sum((chunk.sum(0) for chunk in chunks), torch.zeros_like(self.mean)) / count
        covariance = torch.zeros(len(self.mean), len(self.mean), dtype=torch.float64)
        for chunk in chunks:
            centred = chunk - self.mean
            covariance += centred.T @ centred / count
        values, vectors = torch.linalg.eigh(covariance)  # ascending
        values, vectors = values.flip(0), vectors.flip(1)
        rank = min(count - 1, int((values > values[0] * len(values) * torch.finfo(torch.float64).eps).sum()))
        if self.size > rank:
            raise refuse(
                "pca.components",
                f"got {self.size}; the {count} training samples vary in {rank} direction{'s' * (rank != 1)}",
            )
        signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        self.directions = (vectors * signs)[:, : self.size].contiguous()
        self.variances = values[: self.size].clone()

    def __call__(self, inputs: Tensor) -> Tensor:
        found = (inputs - self.mean) @ self.directions
        return found / self.variances.sqrt() if self.whiten else found

    def names(self, names: Sequence[str]) -> Sequence[str]:
        return [f"component {i + 1}" for i in range(self.size)]

    def state_dict(self) -> dict[str, Any]:
        return {name: to_text(getattr(self, name)) for name in ("mean", "directions", "variances")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("mean", "directions", "variances"):
            value = from_text(state[name])
            if value.shape != getattr(self, name).shape:
                raise ValueError(f"pca: {name} of shape {tuple(value.shape)}")
            setattr(self, name, value)

"""Loss and objective of an epoch or an evaluation."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class EpochSums:
    """Loss and objective summed over the samples of an epoch, on the device until they are asked for."""

    def __init__(self, loss: Tensor | float = 0.0, objective: Tensor | float = 0.0, samples: int = 0) -> None:
        self._loss, self._objective, self.samples = loss, objective, samples

    def add(self, loss: Tensor | float, objective: Tensor | float, count: int) -> None:
        """Floats where they were read already; tensors otherwise, which are read on the CPU only, where it is free."""
        if isinstance(loss, Tensor):
            on_cpu = loss.device.type == "cpu"
            loss = loss.item() if on_cpu else loss.double()
        if isinstance(objective, Tensor):
            objective = objective.item() if isinstance(loss, float) else objective.double()
        self._loss = self._loss + loss * count
        self._objective = self._objective + objective * count
        self.samples += count

    def loss(self) -> float:
        return float(self._loss) / max(1, self.samples)

    def objective(self) -> float:
        return float(self._objective) / max(1, self.samples)

    def means(self, penalised: bool) -> dict[str, float]:
        loss, objective = self.loss(), self.objective()
        return {"loss": loss, "objective": objective, "penalty": objective - loss} if penalised else {"loss": loss}

    def state_dict(self) -> dict[str, Any]:
        return {"loss": float(self._loss), "objective": float(self._objective), "samples": self.samples}

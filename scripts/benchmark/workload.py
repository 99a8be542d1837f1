"""What all contestants of a comparison share: architecture, samples, batch size, device, threads."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

MODELS = {
    "linear": ("model=linear",),
    "mlp": ("model=mlp", "model.dropout=0"),
    "lenet": ("model=lenet", "model.dropout=0"),
    "lenet1998": ("model=lenet", "model.dropout=0", "model.activation=tanh", "model.pool=avg"),
    "resnet8": ("model=resnet20", "model.depth=8"),
}
TITLES = {
    "linear": "one linear layer",
    "mlp": "MLP 512-256",
    "lenet": "LeNet-5",
    "lenet1998": "LeNet-5 with tanh and average pooling",
    "resnet8": "ResNet-8",
}
LEARNING_RATE = 1e-3
EVALUATION_BATCH = 1024  # of every contestant but dlrun, which has a default of its own


@dataclass(frozen=True)
class Workload:
    """Attributes:
    model: a key of MODELS.
    batch: samples of a training minibatch.
    data: an option of dlrun's group `data`; its split is everybody's.
    device: cpu or cuda.
    epochs: that `fit` is asked for.
    limit_train: training samples; None: all. As many validation samples in proportion.
    threads: of PyTorch; None: its own choice.
    words: further words of dlrun's command line, for everybody where they concern data or model.
    """

    model: str = "lenet"
    batch: int = 128
    data: str = "mnist"
    device: str = "cpu"
    epochs: int = 10
    limit_train: int | None = None
    threads: int | None = None
    words: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Such as `LeNet-5 on mnist, batch 128`."""
        few = f", {self.limit_train:,} samples" if self.limit_train else ""
        return f"{TITLES[self.model]} on {self.data}, batch {self.batch}{few}"

    def to_json(self) -> dict[str, Any]:
        """For `from_json` in another process."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Workload:
        """Takes what `to_json` gave."""
        return replace(cls(**found), words=tuple(found["words"]))

    def overrides(self) -> list[str]:
        """The words of dlrun's command line."""
        words = [*MODELS[self.model], f"data={self.data}", f"data.batch_size={self.batch}", f"device={self.device}"]
        words += [f"trainer.epochs={self.epochs}", f"optimizer.lr={LEARNING_RATE}"]
        if self.limit_train:
            words += [f"data.limit_train={self.limit_train}", f"data.limit_val={max(1, self.limit_train // 9)}"]
        if self.threads:
            words.append(f"trainer.threads={self.threads}")
        return [*words, *self.words]

    def config(self) -> dict[str, Any]:
        """dlrun's configuration of it, plain containers."""
        from hydra import compose, initialize_config_dir
        from omegaconf import OmegaConf

        from dlrun import rundir
        from dlrun.settings import config_dir

        OmegaConf.register_new_resolver("dlrun.run_dir", rundir.claim, replace=True)
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            config: Any = OmegaConf.to_container(compose("config", overrides=self.overrides()), resolve=True)
        return config


@dataclass
class Problem:
    """A workload as plain PyTorch objects, for every contestant but dlrun.

    Attributes:
        inputs, targets: float32 and int64, normalised, on the device; in the order of the source.
        val_inputs, val_targets: likewise, of dlrun's validation split.
        model: freshly initialised, on the device; the same module as dlrun trains.
    """

    workload: Workload
    device: Any
    inputs: Tensor
    targets: Tensor
    val_inputs: Tensor
    val_targets: Tensor
    model: nn.Module

    @classmethod
    def make(cls, workload: Workload) -> Problem:
        """Reads the data as dlrun splits and normalises them, and builds the model from dlrun's registry."""
        import torch

        from dlrun.data._module import build_data

        if workload.threads:
            torch.set_num_threads(workload.threads)
        config = workload.config()
        device = torch.device(workload.device)
        data = build_data(config["data"], seed=config["seed"], device=device)
        train, val = ([torch.cat(part) for part in list(zip(*data.split(name), strict=True))[:2]] for name in _SPLITS)
        data.close()
        model = build_model(config, tuple(train[0].shape[1:])).to(device)
        return cls(workload, device, train[0], train[1], val[0], val[1], model)


_SPLITS: Any = ("train", "val")


def build_model(config: dict[str, Any], input_shape: tuple[int, ...], classes: int = 10) -> nn.Module:
    """The module of `config["model"]`, always with the same weights."""
    import torch

    from dlrun.models import MODELS as REGISTRY

    torch.manual_seed(0)
    return REGISTRY.build(config["model"], input_shape=input_shape, num_outputs=classes)

"""LeNet-5 on MNIST with Lightning: `python lightning_lenet.py torchvision|tensors ROOT EPOCHS [SAMPLES]`.

`torchvision`: the data set of torchvision with ToTensor and Normalize, as in most examples. `tensors`: the same samples as
normalised tensors in a TensorDataset. ROOT/MNIST/raw holds the uncompressed files. No logger, checkpoints or progress bar.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from bare_lenet import BATCH, EVALUATION_BATCH, lenet, read
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

MEAN, STD = 0.1307, 0.3081


class LeNet(L.LightningModule):
    """The module of the bare script."""

    def __init__(self) -> None:
        super().__init__()
        self.model = lenet()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3, fused=True)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch: Any, index: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Any, index: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Any, split: str) -> None:
        outputs = self.model(batch[0])
        right = (outputs.argmax(1) == batch[1]).float().mean()
        found = {f"{split}/loss": F.cross_entropy(outputs, batch[1]), f"{split}/accuracy": right}
        self.log_dict(found, batch_size=len(batch[1]))


def from_torchvision(root: Path) -> tuple[Dataset, Dataset]:
    """(training pool, test set), an image at a time."""
    from torchvision.datasets import MNIST
    from torchvision.transforms import Compose, Normalize, ToTensor

    transform = Compose([ToTensor(), Normalize((MEAN,), (STD,))])
    return MNIST(str(root), train=True, transform=transform), MNIST(str(root), train=False, transform=transform)


def from_tensors(root: Path) -> tuple[Dataset, Dataset]:
    """The same as tensors."""
    sets = []
    for name in ("train", "t10k"):
        images = read(root / "MNIST" / "raw", f"{name}-images-idx3-ubyte").unsqueeze(1).float().div_(255)
        labels = read(root / "MNIST" / "raw", f"{name}-labels-idx1-ubyte").long()
        sets.append(TensorDataset(images.sub_(MEAN).div_(STD), labels))
    return sets[0], sets[1]


def main(kind: str, root: Path, epochs: int, samples: int) -> None:
    """Trains, validates after each epoch, tests."""
    L.seed_everything(0)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    pool, test = (from_torchvision if kind == "torchvision" else from_tensors)(root)
    train, _, val = random_split(pool, [samples, 54_000 - samples, 6_000])
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    model = LeNet()
    trainer.fit(model, DataLoader(train, BATCH, shuffle=True), DataLoader(val, EVALUATION_BATCH))
    print(trainer.callback_metrics)
    trainer.test(model, DataLoader(test, EVALUATION_BATCH))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]) if sys.argv[4:] else 54_000)

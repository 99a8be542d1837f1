"""One epoch of LeNet-5 on MNIST as a script that a careful person writes: `python bare_lenet.py FOLDER [SAMPLES]`.

FOLDER holds train-images-idx3-ubyte.gz and the like. Trains on 54,000 samples (or the first SAMPLES of them), validates on
6,000, tests on 10,000.
"""

import gzip
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

BATCH, EVALUATION_BATCH = 128, 1024


def read(folder: Path, name: str) -> torch.Tensor:
    """An IDX file of bytes, compressed or not."""
    path = folder / name
    raw = path.read_bytes() if path.exists() else gzip.decompress((folder / f"{name}.gz").read_bytes())
    sizes = np.frombuffer(raw, ">i4", raw[3], 4)
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sizes).copy())


def lenet() -> nn.Module:
    """LeNet-5 with ReLU and max pooling: 61,706 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 120, 5), nn.ReLU(), nn.Flatten(),
        nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def evaluate(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """(mean loss, accuracy)."""
    model.eval()
    loss, right = torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for x, y in zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True):
            outputs = model(x)
            loss += F.cross_entropy(outputs, y, reduction="sum")
            right += (outputs.argmax(1) == y).sum()
    return loss.item() / len(labels), right.item() / len(labels)


def main(folder: Path, samples: int) -> None:
    """Reads, trains, evaluates, prints."""
    torch.manual_seed(0)
    images = read(folder, "train-images-idx3-ubyte").unsqueeze(1).float().div_(255)
    labels = read(folder, "train-labels-idx1-ubyte").long()
    order = torch.randperm(len(labels))
    train, val = order[:54_000][:samples], order[54_000:]
    std, mean = torch.std_mean(images)
    images.sub_(mean).div_(std)
    model = lenet()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    total, steps = torch.zeros(()), train[torch.randperm(len(train))].split(BATCH)
    for rows in steps:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images[rows]), labels[rows])
        loss.backward()
        optimizer.step()
        total += loss.detach()
    print(f"train loss {total.item() / len(steps):.4f}")
    print("validation loss {:.4f}, accuracy {:.4f}".format(*evaluate(model, images[val], labels[val])))
    del images
    x_test = read(folder, "t10k-images-idx3-ubyte").unsqueeze(1).float().div_(255).sub_(mean).div_(std)
    y_test = read(folder, "t10k-labels-idx1-ubyte").long()
    print("test loss {:.4f}, accuracy {:.4f}".format(*evaluate(model, x_test, y_test)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 54_000)

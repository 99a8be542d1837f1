"""A one-epoch MLP on MNIST as an ordinary Hydra application, with torchvision's data set and a DataLoader:

python hydra_mlp.py lr=1e-4,1e-3 seed=0,1 -m      # with Hydra's basic launcher
"""

import os

import hydra
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import MNIST
from torchvision.transforms import Compose, Normalize, ToTensor

TRAIN, VALIDATE, BATCH = 10_000, 2_000, 128
hydra.core.config_store.ConfigStore.instance().store(name="config", node=OmegaConf.create({"lr": 1e-3, "seed": 0}))


def evaluate(model: nn.Module, loader: DataLoader) -> float:
    """Accuracy."""
    model.eval()
    right = 0
    with torch.no_grad():
        for x, y in loader:
            right += (model(x).argmax(1) == y).sum().item()
    return right / len(loader.dataset)


@hydra.main(version_base="1.3", config_path=None, config_name="config")
def main(cfg: DictConfig) -> float:
    """Trains for an epoch, validates, tests, saves the weights."""
    torch.manual_seed(cfg.seed)
    transform = Compose([ToTensor(), Normalize((0.1307,), (0.3081,))])
    root = os.environ["MNIST_ROOT"]
    pool, test = MNIST(root, train=True, transform=transform), MNIST(root, train=False, transform=transform)
    order = torch.randperm(len(pool)).tolist()
    train, val = Subset(pool, order[:TRAIN]), Subset(pool, order[TRAIN : TRAIN + VALIDATE])
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.lr)
    model.train()
    for x, y in DataLoader(train, BATCH, shuffle=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    accuracy = evaluate(model, DataLoader(val, BATCH))
    evaluate(model, DataLoader(test, BATCH))
    folder = hydra.core.hydra_config.HydraConfig.get().runtime.output_dir
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, f"{folder}/last.pt")
    return accuracy


if __name__ == "__main__":
    main()

"""The configurations that scripts/soak.py kills: all that has state, on data small enough for a run of a second or two."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

COMMON = (
    "device=cpu", "trainer.threads=1", "callbacks.progress.bar=false", "callbacks.tensorboard.images_every_epochs=2",
    "trainer.log_every_steps=5",
)  # fmt: skip
SMALL = ("data=digits", "data.limit_train=400", "data.limit_val=100", "data.limit_test=100")
CNN = ("model=cnn", "model.blocks=[{{channels: 8, pool_size: 2}},{{channels: 8}}]", "model.hidden=[16]")
IMAGES = ("data=image_folder", "data.path={data}/images", "data.image_size=12", "data.batch_size=8", *CNN)
RUNS = {
    "lenet": (
        *SMALL, "model=lenet", "model.dropout=0.25", "optimizer=adam", "scheduler=cosine", "scheduler.warmup_epochs=1",
        "regularization=[augmentation]", "trainer.epochs=6", "trainer.checkpoint_every_steps=7",
    ),
    "batch_norm_swa": (
        *SMALL, "model=mlp", "model.hidden=[32,16]", "model.batch_norm=true", "optimizer=adamw", "scheduler=one_cycle",
        "trainer.swa_start=0.4", "trainer.epochs=8", "trainer.checkpoint_every_steps=5",
    ),
    "plateau": (
        *SMALL, "model=mlp", "optimizer=sgd", "optimizer.lr=0.3", "scheduler=halve_on_plateau", "trainer.patience=4",
        "trainer.monitor=val/accuracy", "trainer.epochs=14", "trainer.checkpoint_every_steps=9",
    ),
    "ema": (
        *SMALL, *CNN, "optimizer=momentum", "scheduler=step",
        "scheduler.milestones=[2,4]", "trainer.ema_decay=0.95", "trainer.epochs=5", "trainer.checkpoint_every_steps=4",
        "+data.augmentation={{flip: {{}}, shift: {{pixels: 1}}, noise: {{}}, brightness: {{}}, contrast: {{}}, erasing: {{}}}}",
    ),
    "accumulate": (
        *SMALL, "model=lenet", "optimizer=nesterov", "scheduler=polynomial", "trainer.accumulate=3",
        "trainer.clip_norm=0.5", "regularization=[label_smoothing]", "trainer.epochs=5", "trainer.checkpoint_every_steps=3",
    ),
    "penalties": (
        *SMALL, "model=mlp", "optimizer=rmsprop", "optimizer.momentum=0.5", "scheduler=inverse_time",
        "regularization=[l1,l2,max_norm,dropout]", "regularization.max_norm.limit=1.0", "trainer.epochs=8",
        "trainer.checkpoint_every_steps=6",
    ),
    "non_negative": (
        *SMALL, "model=linear", "optimizer=adam_small_lr", "scheduler=constant", "regularization=[non_negative]",
        "trainer.epochs=10", "trainer.validate_every_epochs=3", "trainer.checkpoint_every_steps=2",
    ),
    "streaming": (
        "data=poly1d", "model=mlp", "data.loader=streaming", "data.workers=0", "optimizer=adam", "data.samples=400",
        "trainer.epochs=12", "trainer.checkpoint_every_steps=8",
    ),
    "variance": (
        "data=heteroscedastic", "model=mlp", "data.loader=streaming", "data.workers=1", "data.samples=600",
        "optimizer=adamw", "trainer.ema_decay=0.9", "trainer.epochs=5", "trainer.checkpoint_every_steps=6",
    ),
    "table": (
        "data=csv", "data.path={data}/table.csv", "data.target=kind", "model=mlp", "model.dropout=0.3",
        "data.loader=streaming", "data.workers=2", "optimizer=momentum", "trainer.epochs=6",
        "trainer.checkpoint_every_steps=5",
    ),
    "images": (
        *IMAGES, "data.loader=resident", "model.batch_norm=true", "optimizer=nesterov", "trainer.epochs=4",
        "+data.augmentation={{crop: {{}}, colour: {{}}, scale: {{}}, rotation: {{degrees: 10.0}}}}",
        "trainer.checkpoint_every_steps=3",
    ),
    "images_streaming": (
        *IMAGES, "data.loader=streaming", "data.workers=2", "optimizer=adam", "trainer.epochs=4",
        "regularization=[augmentation]", "trainer.swa_start=0.5", "trainer.checkpoint_every_steps=4",
    ),
    "autoencoder": (
        *SMALL, "model=autoencoder", "model.hidden=[32]", "regularization=[code_sparsity]", "optimizer=adam",
        "trainer.ema_decay=0.9", "trainer.epochs=6", "trainer.checkpoint_every_steps=6",
    ),
    "bf16": (
        "data=two_moons", "data.samples=600", "model=mlp", "optimizer=sgd", "trainer.precision=bf16",
        "scheduler=cosine", "trainer.epochs=10", "trainer.checkpoint_every_steps=11",
    ),
    "fp16": (
        *SMALL, "model=mlp", "optimizer=adam", "trainer.precision=fp16", "trainer.clip_norm=1.0", "trainer.epochs=8",
        "trainer.checkpoint_every_steps=5", "trainer.deterministic=true",
    ),
    "steps": (
        "data=two_moons", "data.samples=800", "model=mlp", "loss=hinge", "optimizer=momentum", "trainer.steps=150",
        "trainer.limit_train_batches=13", "trainer.limit_val_batches=2", "callbacks.tensorboard.histograms_every_epochs=2",
    ),
}  # fmt: skip


def compose_all(data: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """The plain configurations. `data`: the folder of `make_data`."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from dlrun import rundir
    from dlrun.build import check
    from dlrun.settings import config_dir

    OmegaConf.register_new_resolver("dlrun.run_dir", rundir.claim, replace=True)
    found: dict[str, dict[str, Any]] = {}
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        for name in names:
            overrides = [word.format(data=data) for word in (*COMMON, *RUNS[name])]
            config: Any = OmegaConf.to_container(compose("config", overrides=overrides), resolve=True)
            check(config)
            found[name] = config
    return found


def make_data(folder: Path) -> None:
    """Writes table.csv (numbers, a category, missing cells, three classes) and images/<class>/<number>.png."""
    from PIL import Image

    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["width", "height", "colour", "kind"])
        for _ in range(300):
            kind = draw.randrange(3)
            width = draw.gauss(kind, 1.0) if draw.random() > 0.05 else ""
            writer.writerow([width, draw.gauss(-kind, 1.0), draw.choice(["red", "green", "blue"]), "abc"[kind]])
    for kind in ("dark", "light"):
        (folder / "images" / kind).mkdir(parents=True, exist_ok=True)
        for number in range(70):
            picture = Image.new("RGB", (14, 14))
            low = 120 if kind == "light" else 0
            picture.putdata([tuple(draw.randrange(low, low + 136) for _ in range(3)) for _ in range(196)])
            picture.save(folder / "images" / kind / f"{number}.png")

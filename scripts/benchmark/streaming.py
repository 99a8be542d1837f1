"""`streaming`: epochs over a folder of image files, dlrun's streaming loader over an ImageFolder and DataLoader loop."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.epoch import rows
from benchmark.report import Section, say
from benchmark.turns import take_turns
from benchmark.workload import Workload, build_model

if TYPE_CHECKING:
    from benchmark.pace import Pace

BASE, WORKERS = "image files loop", 2
NOTE = (
    "A folder of image files, one folder per class, enlarged from the data set named below and read anew from the files in "
    "every epoch. The base is a loop over torchvision's ImageFolder (Resize, CenterCrop, ToTensor, Normalize) and a DataLoader "
    f"with {WORKERS} persistent workers, shuffled, with `Adam(fused=True)`; dlrun has data=image_folder, "
    "data.loader=streaming and as many workers, and all it does by default. A tenth of the files is validation for both."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The settings of this measurement."""
    parser.add_argument("--files", type=int, default=6000, help="images; their number")
    parser.add_argument("--size", type=int, default=64, help="images; height and width in pixels")
    parser.add_argument("--format", default="jpg", choices=["jpg", "png"])


def measure(options: argparse.Namespace) -> Section:
    """LeNet, batch 64."""
    section = Section("streaming", "Image files", NOTE, BASE)
    title = f"{options.files:,} {options.format} files of {options.size}x{options.size} pixels from {options.data}"
    say(title)
    top, cache = Path(tempfile.mkdtemp(prefix="benchmark-images-")), os.environ.get("XDG_CACHE_HOME")
    try:
        write_images(top, options.data, options.files, options.size, options.format)
        words = (f"data.path={top}", f"data.image_size={options.size}", "data.loader=streaming")
        words += (f"data.workers={WORKERS}",)
        workload = Workload("lenet", 64, "image_folder", options.device, threads=options.threads, words=words)
        os.environ["XDG_CACHE_HOME"] = str(top / "cache")  # nothing of these files stays
        found, section.left = take_turns((BASE, "dlrun"), workload, options.rounds)
    finally:
        os.environ.update({"XDG_CACHE_HOME": cache} if cache else {})
        if not cache:
            os.environ.pop("XDG_CACHE_HOME", None)
        shutil.rmtree(top)
    section.rows = [{**row, "group": f"{workload.title}, {title}"} for row in rows(workload, found, BASE, {"dlrun": 1})]
    return section


def write_images(top: Path, data: str, count: int, size: int, suffix: str) -> None:
    """`<top>/train/<class>/<number>.<suffix>`: colour images of dlrun's data set `data`; ten in `test`, which is not read."""
    import torch
    from PIL import Image

    from dlrun.data._module import build_data

    words = ("data.normalize=unit", f"data.limit_train={count}")
    module = build_data(Workload("lenet", data=data, words=words).config()["data"], seed=0, device=torch.device("cpu"))
    number = 0
    for inputs, targets, _ in module.split("train"):
        pixels = inputs.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for image, target in zip(pixels, targets.tolist(), strict=True):
            picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).convert("RGB")
            picture = picture.resize((size, size), Image.Resampling.BILINEAR)
            (top / "train" / f"class_{target}").mkdir(parents=True, exist_ok=True)
            picture.save(top / "train" / f"class_{target}" / f"{number:05}.{suffix}")
            if not (test := top / "test" / f"class_{target}").exists():
                test.mkdir(parents=True)
                picture.save(test / f"0.{suffix}")
            number += 1
    module.close()


def loop(workload: Workload, pace: Pace) -> None:
    """The base."""
    import torch
    from torch.utils.data import DataLoader

    from benchmark import loops

    if workload.threads:
        torch.set_num_threads(workload.threads)
    train, val = image_sets(workload)
    options: dict[str, Any] = {"num_workers": WORKERS, "persistent_workers": True}
    options["pin_memory"] = workload.device == "cuda"
    batches = DataLoader(train, workload.batch, shuffle=True, **options)
    config = workload.config()
    model = build_model(config, (3, config["data"]["image_size"], config["data"]["image_size"])).to(workload.device)
    loops.loop(model, workload, pace, batches, DataLoader(val, workload.batch, **options), {"fused": True})


def image_sets(workload: Workload) -> tuple[Any, Any]:
    """Training and validation images with torchvision's transforms."""
    import torch
    from torch.utils.data import random_split
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

    node = workload.config()["data"]
    size, statistics = node["image_size"], ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    transform = Compose([Resize(size), CenterCrop(size), ToTensor(), Normalize(*statistics)])
    files = ImageFolder(Path(node["path"]) / "train", transform)
    held_out = round(node["val_fraction"] * len(files))
    train, val = random_split(files, [len(files) - held_out, held_out], torch.Generator().manual_seed(0))
    return train, val

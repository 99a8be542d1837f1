"""The data sets of `make matrix`: all that are generated, files made on the fly, published ones that are there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from dlrun.settings import options

Words = tuple[str, ...]
TARGETS: dict[str, tuple[list[str], Words]] = {  # of the table made here: columns of the targets, further words
    "class": (["fruit"], ()),
    "binary": (["ripe"], ()),
    "sign": (["side"], ()),
    "multi_hot": (["ripe", "sweet"], ()),
    "real": (["price"], ()),
    "real_2": (["price", "weight"], ()),
    "non_negative": (["minutes"], ("data.kind=non_negative",)),
}
VARIANTS: dict[str, dict[str, Words]] = {  # further targets of the generated data
    "gaussians": {"binary": (), "sign": ("data.labels=sign",)},
    "xor": {"binary": (), "sign": ("data.labels=sign",)},
}
PUBLISHED = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "cifar-10-batches-py"}
TABLES: dict[str, Words] = {
    "penguins.csv": ("data.target=species",),
    "mpg.csv": ("data.target=mpg", "data.drop=[name]"),
    "iris.csv": ("data.target=-1",),
    "wine.data": ("data.target=0",),
}


def make_table(path: Path) -> None:
    """A table of 60 rows: two numbers (one of them with gaps) and a text as inputs, and targets of every kind."""
    generator = np.random.default_rng(0)
    lines = ["a,b,colour,fruit,ripe,sweet,side,price,weight,minutes"]
    for row, (a, b) in enumerate(generator.normal(size=(60, 2))):
        fruit, colour = ("apple", "pear", "plum")[row % 3], ("red", "green")[row // 3 % 2]
        targets = f"{fruit},{int(a > 0)},{int(b > 0)},{1 if a > b else -1},{a - b:.3f},{a + 2 * b:.3f},{abs(a + b):.3f}"
        lines.append(f"{a:.3f},{'' if row % 7 == 0 else f'{b:.3f}'},{colour},{targets}")
    path.write_text("\n".join(lines) + "\n")


def make_pictures(folder: Path) -> None:
    """Two classes of twelve colour pictures each, of 72x64 pixels."""
    generator = np.random.default_rng(0)
    for number, name in product(range(12), ("cat", "dog")):
        path = folder / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (72, 64, 3), dtype=np.uint8)).save(path)


def data_sets(folder: Path, root: Path | None, own: Sequence[str] = ()) -> dict[str, Words]:
    """Name -> the words that choose it; makes in `folder` what needs files. `root`: of the published ones, if there are any."""
    folder.mkdir(parents=True, exist_ok=True)
    make_table(folder / "table.csv")
    make_pictures(folder / "pictures")
    columns = [column for columns, _ in TARGETS.values() for column in columns]
    found: dict[str, Words] = {}
    for option in (*sorted({*options("data")} - {"csv", "image_folder", "uci", *PUBLISHED}), *own):
        for kind, words in VARIANTS.get(option, {"": ()}).items():
            found[f"{option}:{kind}".rstrip(":")] = (f"data={option}", *words)
    for kind, (targets, words) in TARGETS.items():
        drop = sorted({*columns} - {*targets})
        chosen = (f"data.target=[{','.join(targets)}]", f"data.drop=[{','.join(drop)}]", *words)
        found[f"csv:{kind}"] = ("data=csv", f"data.path={folder / 'table.csv'}", *chosen)
    for name, words in {"colour": ("data.image_size=64",), "grey": ("data.image_size=20", "data.grey=true")}.items():
        pictures = ("data=image_folder", f"data.path={folder / 'pictures'}", "data.workers=0", "data.cache=false")
        found[f"image_folder:{name}"] = (*pictures, *words)
    return found | (published(root) if root else {})


def published(root: Path) -> dict[str, Words]:
    """Name -> words of the published data sets that lie below `root`."""
    found: dict[str, Words] = {name: (f"data={name}",) for name, part in PUBLISHED.items() if (root / part).is_dir()}
    for path in sorted(root.glob("uci/*/data.txt")):
        found[f"uci:{path.parent.name}"] = ("data=uci", f"data.dataset={path.parent.name}")
    for name, words in TABLES.items():
        if (root / "tabular" / name).is_file():
            found[f"csv:{name}"] = ("data=csv", f"data.path=tabular/{name}", *words)
    if (root / "hymenoptera_small").is_dir():
        photographs = ("data.path=hymenoptera_small", "data.image_size=48", "data.workers=0")
        found["image_folder:hymenoptera"] = ("data=image_folder", *photographs)
    return found

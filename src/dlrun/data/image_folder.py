"""Any folder of images, one folder per class."""

from __future__ import annotations

import functools
import importlib.metadata
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Gt, Le
from torch import Tensor

from dlrun.data import DATASETS
from dlrun.data._base import Samples, Source
from dlrun.data._decoding import check_files
from dlrun.data._download import reason
from dlrun.data._files import find_path
from dlrun.registry import ConfigError, did_you_mean
from dlrun.spec import TargetSpec

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
DEEP = ("I", "F")  # Pillow's modes of 16 and 32 bits, which it would clip to 8
LONGEST = 16  # sides of images longer than this to one are cut first: resizing them whole could fill the memory


@DATASETS.register("image_folder")
class ImageFolder(Source):
    """Images in one folder per class: `<path>/<class>/*.jpg`, or `<path>/train/<class>/*.jpg` and so in `val`, `test`.

    With a `train` folder: `test` is the published test set, and `val`, if there too, joins the training pool, from
    which dlrun draws its own validation set; without `test`, `val` is the published test set. Images stay in their
    files until needed: each is resized so that its shorter side fits, then cropped in the centre.

    Args:
        root: folder that holds the data sets, where a relative `path` is looked for too; given by dlrun.
        path: the folder, from the current one or below `data.root`.
        image_size: height and width of every image in pixels.
        grey: read images as grey (one channel) rather than colour (three).
        cache: keep what was learnt by decoding all images (that they are sound, their statistics, and their pixels where these
            are few) for later runs; given by dlrun.

    Shapes: inputs paths (N,), decoded to uint8 (3 or 1, image_size, image_size); targets int64 (N,).

    Raises:
        ConfigError: no such folder, fewer than two classes, a class without images, an unreadable image.
    """

    def __init__(
        self,
        root: Path,
        cache: bool = True,
        *,
        path: str,
        image_size: Annotated[int, Gt(0), Le(4096)] = 224,
        grey: bool = False,
    ) -> None:
        self.root, self.cache, self.path, self.image_size, self.grey = root, cache, path, image_size, grey

    @property
    def published_split(self) -> bool:  # type: ignore[override]
        """Whether the folder has a `test` or `val` folder beside `train`."""
        return self._parts()[1] is not None

    def train(self) -> tuple[Samples, TargetSpec]:
        pools, _ = self._parts()
        classes = _class_names(pools[0])
        if len(classes) < 2:
            raise ConfigError(f"data.path: {pools[0]} has {len(classes)} class folders; at least 2 are needed")
        return self._samples(pools, classes), TargetSpec("class", len(classes), classes)

    def test(self) -> Samples:
        pools, held_out = self._parts()
        assert held_out is not None, "no published test set"
        return self._samples([held_out], _class_names(pools[0]))

    def check_test(self) -> None:
        check_files(self.test())

    def read_inputs(self, path: Path) -> Tensor:
        """(N, C, image_size, image_size) uint8 from one image, or from all images in a folder, by name."""
        files = image_files(path) if path.is_dir() else [path]
        if not files:
            raise ConfigError(f"{path}: holds no images ({', '.join(sorted(SUFFIXES))})")
        return torch.stack([decode_image(file, self.image_size, self.grey) for file in files])

    def _parts(self) -> tuple[list[Path], Path | None]:
        """The folders of the training pool, and that of the published test set."""
        top = find_path(self.path, self.root, "data.path")
        train, val, test = top / "train", top / "val", top / "test"
        if not train.is_dir():
            return [top], None
        if test.is_dir():
            return [train, *([val] if val.is_dir() else [])], test
        return [train], val if val.is_dir() else None

    def _samples(self, pools: list[Path], classes: tuple[str, ...]) -> Samples:
        paths: list[Path] = []
        targets: list[int] = []
        for pool in pools:
            for name in _class_names(pool):
                if name not in classes:
                    raise ConfigError(f"{pool / name}: no such class in training{did_you_mean(name, classes)}")
                files = image_files(pool / name)
                if not files:
                    raise ConfigError(f"{pool / name}: holds no images ({', '.join(sorted(SUFFIXES))})")
                paths += files
                targets += [classes.index(name)] * len(files)
        decode = functools.partial(decode_image, size=self.image_size, grey=self.grey)
        decoded_as = f"{self.image_size} {self.grey} {importlib.metadata.version('pillow')}" if self.cache else None
        return Samples(paths, torch.tensor(targets, dtype=torch.int64), decode, decoded_as)


def _class_names(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise ConfigError(f"data.path: {folder} is not a folder")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    for name in names:
        if not name.isprintable():  # half a surrogate pair stands for bytes that are not UTF-8
            raise ConfigError(f"data.path: {folder} has a class folder {name!a}; expected printable UTF-8")
    return tuple(names)


def image_files(folder: Path) -> list[Path]:
    """The images below a folder, in order of their paths."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def decode_image(path: Path, size: int, grey: bool) -> Tensor:
    """Reads an image, resizes its shorter side to `size` (antialiased), crops the centre: uint8 (C, size, size)."""
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            if file.mode.startswith(DEEP):
                raise ConfigError(f"{path}: has more than 8 bits per channel (mode {file.mode}); convert it first")
            ImageOps.exif_transpose(file, in_place=True)
            file.load()
            mode = "L" if grey else "RGB"
            image = file if file.mode == mode else file.convert(mode)
    except ConfigError:
        raise
    except Exception as error:  # a damaged image raises nearly anything
        raise ConfigError(f"{path}: not a readable image ({reason(error)})") from None
    image = _centre(image)
    scale = size / min(image.size)
    image = image.resize(
        (max(size, round(image.width * scale)), max(size, round(image.height * scale))), Image.Resampling.BILINEAR
    )
    left, top = (image.width - size) // 2, (image.height - size) // 2
    pixels = np.array(image.crop((left, top, left + size, top + size)))
    return torch.from_numpy(pixels).view(size, size, -1).permute(2, 0, 1).contiguous()


def _centre(image: Any) -> Any:
    """The image itself, or the middle of one that is far longer than wide."""
    width, height = image.size
    if max(width, height) <= LONGEST * min(width, height):
        return image
    width, height = (min(side, LONGEST * min(image.size)) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))

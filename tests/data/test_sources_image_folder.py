"""Folders of images."""

import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from dlrun.data import DATASETS
from dlrun.data.image_folder import ImageFolder, decode_image
from dlrun.registry import ConfigError

real = pytest.mark.skipif("DLRUN_DATA_DIR" not in os.environ, reason="DLRUN_DATA_DIR is not set")


def write_image(path, colour=(255, 0, 0), size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def source(path, **settings):
    return DATASETS.build({"name": "image_folder", "path": str(path), **settings}, root=path)


@pytest.fixture
def flat(tmp_path):
    for name in ("b/2.png", "b/deep/1.JPG", "a/1.png"):
        write_image(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_folder_per_class(flat):
    """Classes and files come in order of their names, with class numbers to match; other files are passed over."""
    samples, spec = source(flat).train()
    assert [p.relative_to(flat).as_posix() for p in samples.inputs] == ["a/1.png", "b/2.png", "b/deep/1.JPG"]
    assert samples.targets.tolist() == [0, 1, 1]
    assert (spec.kind, spec.size, spec.names) == ("class", 2, ("a", "b"))
    assert not source(flat).published_split


@pytest.mark.parametrize(
    ("parts", "train", "test"),
    [
        (("train",), 2, None),
        (("train", "val"), 2, 2),
        (("train", "test"), 2, 2),
        (("train", "val", "test"), 4, 2),
    ],
)
def test_published_parts(tmp_path, parts, train, test):
    """`test` is sealed, `val` joins the training pool beside it and stands in for it otherwise."""
    for part in parts:
        for name in ("a", "b"):
            write_image(tmp_path / part / name / f"{part}.png")
    found = source(tmp_path)
    assert len(found.train()[0]) == train
    assert found.published_split == (test is not None)
    assert "test" not in {p.stem for p in found.train()[0].inputs}
    if test:
        held_out = found.test()
        assert {p.stem for p in held_out.inputs} == {"test" if "test" in parts else "val"}
        assert held_out.targets.tolist() == [0, 1]


@pytest.mark.curriculum("T19")
def test_decode(tmp_path):
    """A wide image keeps its middle; colour gives three channels and grey one, with Pillow's luminance."""
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = (200, 100, 50)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    colour = decode_image(tmp_path / "wide.png", 10, grey=False)
    assert (colour.dtype, tuple(colour.shape)) == (torch.uint8, (3, 10, 10))
    assert torch.equal(colour, torch.tensor([200, 100, 50], dtype=torch.uint8).view(3, 1, 1).expand(3, 10, 10))
    grey = decode_image(tmp_path / "wide.png", 10, grey=True)
    assert tuple(grey.shape) == (1, 10, 10)
    assert grey.unique().tolist() == [round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)]


@pytest.mark.parametrize(("width", "height"), [(7, 500), (500, 7), (33, 33), (1, 1), (100, 101)])
@pytest.mark.parametrize("size", [1, 32])
def test_every_size_fits(tmp_path, width, height, size):
    """Images of any shape come out square and wholly covered."""
    write_image(tmp_path / "x.png", (255, 255, 255), (width, height))
    image = decode_image(tmp_path / "x.png", size, grey=False)
    assert tuple(image.shape) == (3, size, size)
    assert int(image.min()) == 255


def test_resizing_is_antialiased(tmp_path):
    """A fine checkerboard shrinks to its mean instead of to one of its colours."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "board.png")
    image = decode_image(tmp_path / "board.png", 8, grey=True).int()
    assert (image - 127).abs().max() <= 3


def test_orientation_and_palette(tmp_path):
    """The camera's orientation is applied, and images with a palette or transparency become plain colours."""
    image = Image.new("RGB", (4, 8), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.paste((255, 0, 0), (0, 0, 4, 4))
    image.save(tmp_path / "turned.png", exif=exif)
    turned = decode_image(tmp_path / "turned.png", 4, grey=False)
    assert turned[2, :, 0].tolist() == [255] * 4  # the lower half is on the left now
    assert turned[0, :, 3].tolist() == [255] * 4
    Image.new("P", (4, 4), 0).save(tmp_path / "palette.gif")
    Image.new("RGBA", (4, 4), (1, 2, 3, 0)).save(tmp_path / "clear.png")
    assert tuple(decode_image(tmp_path / "palette.gif", 4, grey=False).shape) == (3, 4, 4)
    assert decode_image(tmp_path / "clear.png", 4, grey=False)[:, 0, 0].tolist() == [1, 2, 3]


def test_decode_travels_to_workers(flat):
    """The decode function survives pickling, as worker processes need."""
    samples, _ = source(flat, image_size=5, grey=True).train()
    decode = pickle.loads(pickle.dumps(samples.decode))
    assert tuple(decode(samples.inputs[0]).shape) == (1, 5, 5)


def test_read_inputs(flat):
    """One image, or all images of a folder, can be predicted."""
    assert tuple(source(flat, image_size=3).read_inputs(flat / "a" / "1.png").shape) == (1, 3, 3, 3)
    assert tuple(source(flat, image_size=3).read_inputs(flat).shape) == (3, 3, 3, 3)
    (flat / "none").mkdir()
    with pytest.raises(ConfigError, match="none: holds no images"):
        source(flat).read_inputs(flat / "none")


def test_errors(flat):
    """A missing folder, a single class, an empty class, an unknown class and a broken image are named in one line."""
    with pytest.raises(ConfigError, match=r"data.path: no such file or folder: .*nowhere"):
        source(flat / "nowhere").train()
    with pytest.raises(ConfigError, match="1 class folders; at least 2"):
        source(flat / "b").train()
    (flat / "b" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    samples, _ = source(flat).train()
    with pytest.raises(ConfigError, match=r"2.png: not a readable image"):
        samples.decode(flat / "b" / "2.png")
    (flat / "c").mkdir()
    with pytest.raises(ConfigError, match=r"/c: holds no images"):
        source(flat).train()


def test_truncated_image(tmp_path):
    """An image that breaks off is an error that names the file, not a half-grey picture."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").write_bytes((tmp_path / "x.jpg").read_bytes()[:2000])
    with pytest.raises(ConfigError, match=r"x.jpg: not a readable image"):
        decode_image(tmp_path / "x.jpg", 8, grey=False)


def test_unknown_test_class(tmp_path):
    """A class that only the test set has is refused with the nearest class of training."""
    for name in ("train/ants/1.png", "train/bees/1.png", "test/bee/1.png"):
        write_image(tmp_path / name)
    with pytest.raises(ConfigError, match=r"no such class in training; did you mean 'bees'\?"):
        source(tmp_path).test()


@real
def test_photographs():
    """The ants and bees: 16 photographs to train on, 8 held out, found below the data root."""
    from dlrun.settings import data_root

    found = ImageFolder(data_root(), path="hymenoptera_small", image_size=64)
    samples, spec = found.train()
    assert (len(samples), len(found.test()), spec.names) == (16, 8, ("ants", "bees"))
    images = torch.stack([samples.decode(path) for path in samples.inputs])
    assert tuple(images.shape) == (16, 3, 64, 64)
    assert images.float().std() > 20

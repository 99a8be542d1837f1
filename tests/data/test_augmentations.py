"""Augmentations against torchvision, SciPy and hand-made references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dlrun import streams
from dlrun.data._augmentation import AUGMENTATIONS, build_augmentations
from dlrun.data.augmentations._geometry import warp_affine
from dlrun.data.augmentations.elastic import smooth
from dlrun.data.augmentations.rotation import rotate
from dlrun.registry import ConfigError

KEY = streams.key_tensor(streams.key(0, "augmentation/test", 0))
COURSE_KINDS = {"flip", "rotation", "crop", "shift", "colour", "noise", "erasing", "contrast", "brightness"}
IDENTITIES = {
    "flip": {"p": 0.0},
    "shift": {"pixels": 0},
    "crop": {"min_area": 1.0, "max_ratio": 1.0},
    "rotation": {"degrees": 0.0},
    "scale": {"min_factor": 1.0, "max_factor": 1.0},
    "brightness": {"strength": 0.0},
    "contrast": {"strength": 0.0},
    "colour": {"saturation": 0.0, "shift": 0.0},
    "noise": {"std": 0.0},
    "erasing": {"p": 0.0},
    "elastic": {"alpha": 0.0},
}


def make(name: str, channels: int = 3, **settings):
    """The augmentation `name` for images of 12 x 10 pixels."""
    return build_augmentations({name: settings}, (channels, 12, 10))[0][1]


def images(n: int = 64, channels: int = 3, height: int = 12, width: int = 10) -> torch.Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.curriculum("D09", "D10")
def test_every_kind_of_the_courses_is_an_option():
    """The kinds named in the courses are registry keys."""
    assert set(AUGMENTATIONS.names()) >= COURSE_KINDS


def test_the_table_of_identities_is_complete():
    """Every augmentation has a setting at which the next test expects no change."""
    assert set(IDENTITIES) == set(AUGMENTATIONS.names())


@pytest.mark.curriculum("D10")
@pytest.mark.parametrize("name", sorted(IDENTITIES))
def test_zero_strength_is_the_identity(name):
    """At zero strength an augmentation changes nothing; brightness, contrast and shifts do so bit for bit."""
    x = images()
    y = make(name, **IDENTITIES[name])(x, KEY)
    if name in ("flip", "shift", "brightness", "contrast", "noise", "erasing"):
        assert torch.equal(x, y)
    else:
        torch.testing.assert_close(y, x, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", sorted(IDENTITIES))
def test_samples_differ_and_keys_repeat(name):
    """Equal samples of a batch are changed differently; the same key gives the same batch, another key another."""
    augmentation = make(name)
    x = images(1).expand(64, -1, -1, -1).clone()
    before = x.clone()
    y = augmentation(x, KEY)
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    assert torch.equal(x, before)
    assert torch.equal(y, augmentation(x, KEY))
    assert not torch.equal(y, augmentation(x, streams.key_tensor(streams.key(0, "augmentation/test", 1))))
    assert len(torch.unique(y.flatten(1), dim=0)) >= 2


@pytest.mark.curriculum("D09")
def test_flip_mirrors_the_share_asked_for():
    """Each sample is the mirror image or itself, and p = 0.3 of 4,000 are mirrored to within 4 standard deviations."""
    x = images(4000, 1, 4, 5)
    y = make("flip", 1, p=0.3)(x, KEY)
    mirrored = (y == x.flip(3)).flatten(1).all(1)
    assert torch.equal(y[~mirrored], x[~mirrored])
    assert abs(mirrored.float().mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 4000)
    assert torch.equal(make("flip", 1, p=1.0, direction="vertical")(x, KEY), x.flip(2))


@pytest.mark.parametrize("padding", ["zero", "edge"])
def test_shift_moves_by_whole_pixels_uniformly(padding):
    """Every result is one of the 25 windows of the padded image, all windows occur, and about equally often."""
    x = images(1, 2, 5, 7)
    y = make("shift", 2, pixels=2, padding=padding)(x.expand(2500, -1, -1, -1), KEY)
    padded = np.pad(x[0].numpy(), ((0, 0), (2, 2), (2, 2)), mode="constant" if padding == "zero" else "edge")
    windows = [padded[:, i : i + 5, j : j + 7] for i in range(5) for j in range(5)]
    counts = [int((y == torch.from_numpy(w.copy())).flatten(1).all(1).sum()) for w in windows]
    assert sum(counts) == 2500
    assert sum((c - 100) ** 2 / 100 for c in counts) < 51.2  # chi-square with 24 degrees of freedom at p = 0.001


@pytest.mark.curriculum("D09")
@pytest.mark.parametrize("degrees", [20.0, -35.0, 90.0])
def test_rotation_equals_scipy(degrees):
    """A rotation of an oblong image equals scipy.ndimage.rotate with linear interpolation."""
    from scipy import ndimage

    x = images(2, 1, 12, 10)
    ours = rotate(x, torch.full((2,), math.radians(degrees)))
    for mine, image in zip(ours[:, 0], x[:, 0], strict=True):
        theirs = ndimage.rotate(image.numpy(), degrees, reshape=False, order=1, mode="grid-constant", prefilter=False)
        torch.testing.assert_close(mine, torch.from_numpy(theirs), atol=1e-5, rtol=0)


@pytest.mark.curriculum("D09")
def test_rotation_stays_within_its_angle():
    """With 10 degrees, a spot at 8 pixels to the right of the middle moves by at most 8 sin(10 degrees) pixels."""
    x = torch.zeros(500, 1, 21, 21)
    x[:, :, 10, 18] = 1.0
    y = build_augmentations({"rotation": {"degrees": 10.0}}, (1, 21, 21))[0][1](x, KEY)[:, 0]
    height = (y.sum(2) * torch.arange(21.0)).sum(1) / y.sum((1, 2)) - 10
    limit = 8 * math.sin(math.radians(10))
    assert height.abs().max() < limit + 0.05
    assert height.max() > 0.8 * limit
    assert height.min() < -0.8 * limit


def test_affine_warp_by_hand():
    """A centre of (1, -2) pixels moves an image by exactly one column and two rows."""
    x = images(3, 2)
    matrix = torch.eye(2).expand(3, 2, 2)
    y = warp_affine(x, matrix, torch.tensor([1.0, -2.0]).expand(3, 2))
    torch.testing.assert_close(y[:, :, 2:, :-1], x[:, :, :-2, 1:], atol=1e-5, rtol=0)
    assert y[:, :, :2].abs().max() < 1e-5


def test_scale_by_two_magnifies_the_middle():
    """Factor 2 spreads the middle 3 x 3 pixels of 6 x 6 over the image; a linear ramp gets half its slope."""
    ramp = torch.arange(6.0).view(1, 1, 1, 6).expand(1, 1, 6, 6)
    y = build_augmentations({"scale": {"min_factor": 2.0, "max_factor": 2.0}}, (1, 6, 6))[0][1](ramp, KEY)
    torch.testing.assert_close(y[0, 0, 0], torch.tensor([1.25, 1.75, 2.25, 2.75, 3.25, 3.75]))


@pytest.mark.curriculum("D09")
def test_crop_shows_a_part_of_the_asked_size():
    """On a horizontal ramp the slope of the crop is its relative width, and its ends lie inside the image."""
    ramp = (torch.arange(20.0) / 19).view(1, 1, 1, 20).expand(400, 1, 20, 20)
    y = build_augmentations({"crop": {"min_area": 0.25, "max_ratio": 1.0}}, (1, 20, 20))[0][1](ramp, KEY)
    share = (y[:, 0, 10, 12] - y[:, 0, 10, 7]) / (5 / 19)
    area = share**2
    assert area.min() > 0.25 - 1e-3
    assert area.max() < 1 + 1e-3
    assert abs(area.mean() - 0.625) < 0.05  # uniform between 0.25 and 1
    assert y.min() >= 0
    assert y.max() <= 1


@pytest.mark.curriculum("D09", "D10")
def test_brightness_and_contrast_equal_torchvision():
    """Each grey image is torchvision's adjust_brightness or adjust_contrast at the factor that its own draw gives."""
    from torchvision.transforms import functional as tv

    x = images(8, 1)
    factors = streams.uniform(KEY, (8,)) * 1.0 + 0.5
    for name, reference in (("brightness", tv.adjust_brightness), ("contrast", tv.adjust_contrast)):
        y = make(name, 1, strength=0.5)(x, KEY)
        expected = torch.stack([reference(image, float(f)) for image, f in zip(x, factors, strict=True)])
        torch.testing.assert_close(y, expected, atol=1e-6, rtol=0)


@pytest.mark.curriculum("D09")
def test_saturation_equals_torchvision_for_some_factor():
    """With shift=0, some factor within 1 +- saturation reproduces each image through torchvision's adjust_saturation."""
    from torchvision.transforms import functional as tv

    x = 0.3 + 0.4 * images(8)
    y = make("colour", saturation=0.5, shift=0.0)(x, KEY)
    for image, ours in zip(x, y, strict=True):
        grey = tv.rgb_to_grayscale(image)
        factor = float(((ours - grey) * (image - grey)).sum() / ((image - grey) ** 2).sum())
        assert 0.5 <= factor <= 1.5
        torch.testing.assert_close(ours, tv.adjust_saturation(image, factor), atol=1e-3, rtol=0)


@pytest.mark.curriculum("D09")
def test_colour_moves_each_channel_by_its_own_constant():
    """With saturation=0, all pixels of a channel move by the same amount, at most `shift`, and channels differ."""
    x = 0.4 + 0.2 * images(50)
    moved = (make("colour", saturation=0.0, shift=0.2)(x, KEY) - x).flatten(2)
    torch.testing.assert_close(moved, moved[:, :, :1].expand_as(moved), atol=1e-6, rtol=0)
    assert moved.abs().max() <= 0.2 + 1e-6
    assert moved[:, :, 0].std() > 0.08  # a uniform on [-0.2, 0.2] has 0.115
    assert moved[:, :, 0].std(1).mean() > 0.08  # between the channels of an image


@pytest.mark.curriculum("D09", "D10")
@pytest.mark.parametrize("shape", [(1, 16, 16), (7,)])
def test_noise_has_the_configured_standard_deviation(shape):
    """The noise on images and on vectors has mean 0 and the standard deviation asked for, and no correlation."""
    x = torch.full((2000, *shape), 0.5)
    noise = build_augmentations({"noise": {"std": 0.3}}, shape)[0][1](x, KEY) - x
    count = noise.numel()
    assert abs(noise.mean()) < 4 * 0.3 / math.sqrt(count)
    assert abs(noise.std() - 0.3) < 4 * 0.3 / math.sqrt(2 * count)
    flat = noise.flatten(1)
    assert abs(torch.corrcoef(flat[:, :2].T)[0, 1]) < 4 / math.sqrt(2000)


@pytest.mark.curriculum("D09")
def test_erasing_paints_one_rectangle_of_the_asked_area():
    """Changed pixels form one filled rectangle of about the asked area, in the share of the samples asked for."""
    x = images(1000, 2, 20, 20) * 0.9 + 0.05
    y = build_augmentations({"erasing": {"p": 0.4, "min_area": 0.1, "max_area": 0.3, "fill": 1.0}}, (2, 20, 20))[0][1](
        x, KEY
    )
    changed = (y != x).all(1)
    assert torch.equal(changed, (y != x).any(1))
    assert (y.movedim(1, -1)[changed] == 1.0).all()
    rows, columns = changed.any(2).sum(1), changed.any(1).sum(1)
    area = changed.sum((1, 2))
    assert torch.equal(area, rows * columns)
    hit = area > 0
    assert abs(hit.float().mean() - 0.4) < 4 * math.sqrt(0.24 / 1000)
    assert area[hit].min() > 0.07 * 400  # rounding to pixels, and clipping of long rectangles
    assert area[hit].max() < 0.36 * 400


def test_elastic_field_equals_scipy():
    """The smoothed field equals scipy.ndimage.gaussian_filter with zeros beyond the border."""
    from scipy import ndimage

    field = torch.rand(2, 2, 12, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    for sigma in (0.8, 2.0, 4.0):
        ours = smooth(field.float(), sigma)
        theirs = ndimage.gaussian_filter(field.numpy(), (0, 0, sigma, sigma), mode="constant", truncate=4.0)
        torch.testing.assert_close(ours, torch.from_numpy(theirs).float(), atol=1e-6, rtol=1e-5)


def test_elastic_equals_scipy_map_coordinates():
    """The whole distortion equals SciPy's filter and map_coordinates on the same random field."""
    from scipy import ndimage

    x = images(3, 1)
    y = make("elastic", 1, alpha=8.0, sigma=2.0)(x, KEY)
    raw = (streams.uniform(KEY, (3, 2, 12, 10)) * 2 - 1).double().numpy()
    field = ndimage.gaussian_filter(raw, (0, 0, 2.0, 2.0), mode="constant") * 8.0
    rows, columns = np.meshgrid(np.arange(12), np.arange(10), indexing="ij")
    for i in range(3):
        places = [rows + field[i, 1], columns + field[i, 0]]
        theirs = ndimage.map_coordinates(x[i, 0].numpy(), places, order=1, mode="grid-constant")
        torch.testing.assert_close(y[i, 0], torch.from_numpy(theirs), atol=2e-5, rtol=0)


def test_image_augmentation_of_vectors_is_refused():
    """An augmentation of images for vectors is a ConfigError that names those that fit."""
    with pytest.raises(ConfigError, match=r"data\.augmentation\.flip: needs images.*7 features; these fit: noise"):
        build_augmentations({"flip": {}}, (7,))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"rotaton": {}}, r"data\.augmentation: unknown 'rotaton'.*did you mean 'rotation'\?"),
        (
            {"rotation": {"degree": 3}},
            r"data\.augmentation\.rotation\.degree: unknown setting.*did you mean 'degrees'\?",
        ),
        ({"flip": {"p": 1.5}}, r"data\.augmentation\.flip\.p: got 1\.5"),
        ({"shift": {"pixels": 1.5}}, r"data\.augmentation\.shift\.pixels: got 1\.5; expected int"),
        ({"shift": {"padding": "zeros"}}, r"data\.augmentation\.shift\.padding: got 'zeros'.*did you mean 'zero'\?"),
        ({"scale": {"min_factor": 2.0}}, r"data\.augmentation\.scale\.min_factor: got 2\.0; expected at most"),
        ({"erasing": {"min_area": 0.5}}, r"data\.augmentation\.erasing\.min_area: got 0\.5; expected at most"),
        ({"colour": {}}, r"data\.augmentation\.colour: needs images of 3 channels, got 1"),
        ({"colour": {"input_shape": 3}}, r"data\.augmentation\.colour\.input_shape: is set by dlrun itself"),
    ],
)
def test_wrong_settings_are_named(node, message):
    """A misspelt name or setting, a wrong type or value is one line with the dotted key."""
    with pytest.raises(ConfigError, match=message) as caught:
        build_augmentations(node, (1, 8, 8))
    assert "\n" not in str(caught.value)


@pytest.mark.cuda
@pytest.mark.parametrize("name", sorted(IDENTITIES))
def test_cuda_augments_as_the_cpu_does(name):
    """The same key gives the same augmented batch on both devices, up to rounding."""
    x = images()
    on_cuda = make(name)(x.cuda(), KEY.cuda()).cpu()
    torch.testing.assert_close(on_cuda, make(name)(x, KEY), atol=1e-4, rtol=0)

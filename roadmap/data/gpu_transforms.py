"""The fast pipeline: images prepared in batches on the device, from sets in memory or from crops of class folders.

What is random about an image is a function of (seed, epoch, id): not of the batch the image is in, nor of the device.
Flips and moves are drawn on the CPU for the whole epoch and looked up by the image's id; everything else is drawn for
each batch (`counter_rng`).
"""

from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from roadmap.config.choices import Crop
from roadmap.config.images import DataConfig
from roadmap.data.counter_rng import states
from roadmap.data.datasets import BatchSpec, Split
from roadmap.data.decoding import eval_crops, train_crops
from roadmap.data.image_ops import to_device
from roadmap.data.rand_augment import apply_rand_augment, draw_layers, parse_policy
from roadmap.data.random_crop import resized_boxes
from roadmap.data.random_erasing import draw_erased, erase
from roadmap.data.sampling import Draw, generator


class Augmentation(NamedTuple):
    """What happens to each of N training images; None where a part is off."""

    flip: Tensor | None = None  # bool (N,)
    window: Tensor | None = None  # int64 (N, 2): top and left of the window in the padded image
    box: Tensor | None = None  # float32 (N, 4): top, left, height, width of the resized crop, pixels
    theta: Tensor | None = None  # float32 (N, 2, 3): output to input coordinates, each from -1 to 1

    def each(self, change: Callable[[Tensor], Tensor]) -> "Augmentation":
        """Return it with all parts changed alike: copied to a device, or those of some images."""
        return Augmentation(*(None if part is None else change(part) for part in self))


def train_batches(spec: BatchSpec) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield augmented images float32 `(B, 3, H, W)`, channels-last, and labels int64 `(B,)`, on the device.

    Raises DataError on reaching an image that cannot be read.
    """
    data, recipe, seed, epoch, device = spec.data, spec.recipe, spec.seed, spec.epoch, spec.device
    policy, labels = parse_policy(data, recipe), to_device(spec.split.labels, device)
    scale, bias = normalisation(data, device)
    places = (to_device(ids, device) for ids in spec.index_batches)
    batches: Iterator[tuple[Tensor, Tensor]]
    if spec.split.images is not None:
        pixels, drawn = pixels_on(spec.split, device), data
        batches = ((at, pixels[at]) for at in places)
    else:  # a resized crop is cut where the image is decoded
        drawn = data.replace(crop=Crop.none) if data.crop == Crop.resized else data
        batches = zip(places, train_crops(spec), strict=True)
    todo = draw_augmentation(len(spec.split), drawn, seed, epoch).each(lambda part: to_device(part, device))
    for batch_ids, (at, images) in zip(spec.index_batches, batches, strict=True):
        ids = batch_ids.numpy()
        images = augment(images, todo.each(itemgetter(at)), data.padding, recipe.interpolation)
        if policy is not None:
            images = apply_rand_augment(images, policy, draw_layers(policy, seed, epoch, ids))
        images = normalise(images, scale, bias)
        if recipe.random_erasing:
            boxes = draw_erased(recipe.random_erasing, data.image_size, seed, epoch, ids)
            erase(images.permute(0, 2, 3, 1), boxes, states(Draw.noise, seed, epoch, ids))
        yield images, labels[at]


def eval_batches(spec: BatchSpec) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images normalised, float32 `(B, 3, H, W)`, channels-last, and labels int64 `(B,)`, on the device.

    Sets in memory as they are; class folders resized and cropped at the centre as in the reference pipeline, to the
    byte. Raises DataError on reaching an image that cannot be read.
    """
    split, device = spec.split, spec.device
    labels = to_device(split.labels, device)
    scale, bias = normalisation(spec.data, device)
    as_they_are = split.images is not None and spec.data.resize_size is None
    crops = None if as_they_are else eval_crops(spec)
    for ids in spec.index_batches:
        ids = to_device(ids, device)
        yield normalise(pixels_on(split, device)[ids] if crops is None else next(crops), scale, bias), labels[ids]


def pixels_on(split: Split, device: torch.device) -> Tensor:
    """Return the images on the device, uint8 `(N, H, W, C)`, copied there once; C is 1 for gray sets."""
    if device not in split.on_device:
        assert split.images is not None
        images = split.images[:, :1] if split.images.stride(1) == 0 else split.images
        split.on_device[device] = images.permute(0, 2, 3, 1).contiguous().to(device)
    return split.on_device[device]


def draw_augmentation(num_images: int, data: DataConfig, seed: int, epoch: int) -> Augmentation:
    """Draw one epoch's augmentation of every image, on the CPU.

    Turning one part on or off leaves the draws of the others alone.
    """
    draw = generator(Draw.epoch, seed, epoch)
    flip, top, left, angle, zoom, shift_x, shift_y = torch.rand(7, num_images, generator=draw)
    window = box = theta = None
    if data.crop == Crop.pad:
        window = (torch.stack((top, left), 1) * (2 * data.padding + 1)).long()
    if data.crop == Crop.resized:
        box = resized_boxes(num_images, data.image_size, draw)
    if data.rotate or data.zoom or data.shift:
        angles, scales = torch.deg2rad(symmetric(angle, data.rotate)), 1 + symmetric(zoom, data.zoom)
        theta = affine_theta(angles, scales, symmetric(torch.stack((shift_x, shift_y), 1), data.shift))
    return Augmentation(flip < 0.5 if data.flip else None, window, box, theta)


def symmetric(uniform: Tensor, limit: float) -> Tensor:
    """Turn numbers from [0, 1) into numbers from [-limit, limit)."""
    return (2 * uniform - 1) * limit


def affine_theta(angle: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return the map from output to input coordinates `(N, 2, 3)`: turn clockwise by `angle` (radians), scale, shift.

    `shift` `(N, 2)` is a share of the image's width and height; coordinates run from -1 to 1, so it counts twice.
    """
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    linear = torch.stack((cos, sin, -sin, cos), 1).view(-1, 2, 2)
    return torch.cat((linear, -linear @ (2 * shift).unsqueeze(2)), 2)


def augment(images: Tensor, todo: Augmentation, padding: int, interpolation: str) -> Tensor:
    """Cut, flip and move a batch: uint8 -> uint8 or float32, `(B, H, W, C)`, values 0 to 255."""
    if todo.window is not None:
        images = padded_crop(images, todo.window, padding)
    if todo.flip is not None:
        images = torch.where(todo.flip[:, None, None, None], images.flip(2), images)
    if todo.box is not None:
        images = resized_crop(images, todo.box, interpolation)
    if todo.theta is not None:
        images = affine(images, todo.theta)
    return images


def padded_crop(images: Tensor, corners: Tensor, padding: int) -> Tensor:
    """Cut each image's window, at its corner `(B, 2)`, out of the image with a border of zeros: `(B, H, W, C)`."""
    row = torch.arange(len(images), device=images.device)[:, None, None]
    line = torch.arange(images.shape[1], device=images.device)
    top, left = corners[:, :1] + line, corners[:, 1:] + line
    return F.pad(images, (0, 0, padding, padding, padding, padding))[row, top[:, :, None], left[:, None, :]]


def resized_crop(images: Tensor, box: Tensor, interpolation: str) -> Tensor:
    """Resize each image's box to the full size: `(B, H, W, C)` -> float32 `(B, H, W, C)`.

    A box is never larger than its image, so this only enlarges, and needs no smoothing before it.
    """
    size = images.shape[1]
    centres = (torch.arange(size, device=images.device) + 0.5) / size
    start, side = box[:, :2, None], box[:, 2:, None]
    # A resized crop repeats the box's outermost pixels; it does not look beyond them.
    position = torch.minimum(start + (centres * side - 0.5).clamp(min=0), start + side - 1)
    y, x = ((position + 0.5) * (2 / size) - 1).unbind(1)
    grid = torch.stack((x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)), 3)
    return sample(images, grid, interpolation, "border").clamp_(0, 255)  # bicubic overshoots


def affine(images: Tensor, theta: Tensor) -> Tensor:
    """Turn, scale and shift each image, bilinear, black beyond its edges: `(B, H, W, C)` -> float32 `(B, H, W, C)`."""
    batch, height, width, _ = images.shape
    grid = F.affine_grid(theta, [batch, 1, height, width], align_corners=False)
    return sample(images, grid, "bilinear", "zeros")


def sample(images: Tensor, grid: Tensor, mode: str, padding_mode: str) -> Tensor:
    """Look up `(B, H, W, C)` at a grid of positions `(B, H, W, 2)`."""
    planes = images.permute(0, 3, 1, 2).float()
    return F.grid_sample(planes, grid, mode=mode, padding_mode=padding_mode, align_corners=False).permute(0, 2, 3, 1)


def normalisation(data: DataConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return scale and bias, `(W, 3)`, every pixel of a row alike, that turn bytes into `(byte / 255 - mean) / std`."""
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    scale, bias = (value.repeat(data.image_size, 1) for value in (1 / (255 * std), -mean / std))
    return to_device(scale, device), to_device(bias, device)


def normalise(images: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalise: `(B, H, W, C)` of 0 to 255 -> float32 `(B, 3, H, W)`, channels-last; one channel becomes three."""
    return (images * scale).add_(bias).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

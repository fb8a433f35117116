"""The images' Triton kernels in Triton's interpreter, on the CPU; test_kernels_triton.py runs this."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from roadmap.config.choices import Interpolation
from roadmap.config.images import DataConfig
from roadmap.config.recipe import RecipeConfig
from roadmap.data import (
    decoding,
    gpu_transforms,
    image_ops,
    random_erasing,
    train_batches,
    triton_augment,
    triton_crops,
)
from roadmap.data.datasets import Split
from roadmap.data.image_ops import to_device
from roadmap.data.rand_augment import Layer, apply_layer, apply_layers_by_triton

from .test_data_decode import check_crops
from .test_data_ops import CPU, FILL, MOVES, OPERATIONS, batches

SIDE = 24  # pixels, of which 512 at a time leave a rest
# Of operations that launch nothing.
VIEWS = {"alias", "as_strided", "expand", "permute", "select", "slice", "unbind", "unsqueeze", "view"}
VIEWS |= {"_unsafe_view", "detach", "empty", "empty_like", "empty_strided", "lift_fresh", "new_empty", "squeeze"}


def by_both(ops, args, images, interpolation):
    layer = Layer(np.array(ops), np.array(args, dtype=np.float64))
    theirs = images.clone()
    apply_layer(theirs, layer, FILL, interpolation)
    return apply_layers_by_triton(images, [layer], FILL, interpolation).int(), theirs.int()


def cut():
    return torch.from_numpy(np.stack(batches()))[::2, :SIDE, :SIDE].contiguous()


@pytest.mark.parametrize("op", OPERATIONS)
def test_an_operation_gives_the_bytes_of_the_operations_of_torch(op):
    images = cut()[::2].contiguous() if op in MOVES else cut()
    for interpolation in list(Interpolation) if op in MOVES else [Interpolation.bicubic]:
        for arg in OPERATIONS[op][1][1:] or (None,):  # the interpreter takes its time
            ours, theirs = by_both([op] * len(images), [arg or 0.0] * len(images), images, interpolation)
            difference = (ours - theirs).abs()
            # A CPU fuses a multiplication with an addition where the kernels do not: a value may be cut off below.
            assert difference.max() <= (1 if op in MOVES else 0) and (difference > 0).float().mean() < 1e-3, arg


def test_images_keep_their_own_operations_whatever_else_is_in_the_batch():
    names = [*OPERATIONS, ""]
    args = [OPERATIONS[op][1][-1] or 0.0 if op else 0.0 for op in names]
    images = cut()[torch.arange(len(names)) % 5]
    ours, theirs = by_both(names, args, images, Interpolation.bilinear)
    assert (ours - theirs).abs().max() <= 1
    assert torch.equal(ours[-1], images[-1].int())


@pytest.mark.parametrize("size", [24, 100])
@pytest.mark.parametrize("interpolation", list(Interpolation))
def test_crops_have_pillows_bytes(interpolation, size):
    check_crops(size, interpolation, CPU)
    nothing = decoding.resized_crops([torch.ones(3, 1, 1, dtype=torch.uint8)], [(0, 0, 0, 0)], size, interpolation)
    assert not nothing.any()


def test_each_layer_has_its_own_operations_and_arguments():
    names = [*OPERATIONS, ""]
    args = np.array([OPERATIONS[op][1][-1] or 0.0 if op else 0.0 for op in names])
    images = cut()[torch.arange(len(names)) % 5]
    layers = [Layer(np.array(names), args), Layer(np.array(names[::-1]), args[::-1])]
    theirs = images.clone()
    for layer in layers:
        apply_layer(theirs, layer, FILL, Interpolation.bilinear)
    ours = apply_layers_by_triton(images, layers, FILL, Interpolation.bilinear)
    assert ((ours.int() - theirs.int()).abs() > 3).float().mean() < 1e-3  # a level off may become more
    assert apply_layers_by_triton(images, [], FILL, Interpolation.bilinear) is images


class Launches(TorchDispatchMode):
    """Counts what a GPU would launch: operations of torch, Triton's kernels, copies to the device."""

    def __init__(self):
        super().__init__()
        self.kernels = self.operations = self.copies = 0
        self.counts = True

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations += self.counts and function.overloadpacket.__name__ not in VIEWS
        return function(*args, **(kwargs or {}))

    def kernel(self, made):
        """Return a kernel that is counted, without what the interpreter asks of torch."""

        def run(grid, *args, **constants):
            self.kernels, self.counts = self.kernels + 1, False
            made[grid](*args, **constants)
            self.counts = True

        return Launched(run)

    def copy(self, tensor, device):
        self.copies += 1
        return to_device(tensor, device)


class Launched:
    """What is started as `kernel[grid](...)`."""

    def __init__(self, run):
        self.run = run

    def __getitem__(self, grid):
        return partial(self.run, grid)


def test_a_batch_takes_fewer_than_a_hundred_launches(monkeypatch):
    """All of ImageNet's recipe behind the decoder: flip, RandAugment, normalisation, erasing."""
    launches = Launches()
    for name in ("tables_kernel", "pixels_kernel"):
        monkeypatch.setattr(triton_augment, name, launches.kernel(getattr(triton_augment, name)))
    for module in (gpu_transforms, image_ops, random_erasing):
        monkeypatch.setattr(module, "to_device", launches.copy)
    pixels = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    data = DataConfig(name="synthetic", image_size=32, flip=True, pipeline="fast")
    recipe = RecipeConfig(rand_augment="rand-m9-mstd0.5-inc1", random_erasing=1.0, interpolation="bicubic")
    split, order = Split(labels=torch.arange(16) % 2, images=pixels), list(torch.arange(16).split(8))
    batches = train_batches(split, data, recipe, order, seed=0, epoch=0, device=CPU)
    next(batches)  # what an epoch does once is behind us
    launches.kernels = launches.copies = 0
    with launches:
        next(batches)
    assert launches.kernels == 4  # two a layer
    assert 40 < launches.operations and launches.copies == 3
    assert launches.kernels + launches.operations + launches.copies <= 60


def test_the_crops_of_decoded_images_take_three_launches(monkeypatch):
    launches = Launches()
    for name in ("across_kernel", "down_kernel"):
        monkeypatch.setattr(triton_crops, name, launches.kernel(getattr(triton_crops, name)))
    monkeypatch.setattr(decoding, "to_device", launches.copy)
    images = [torch.full((3, 9, 8), value, dtype=torch.uint8) for value in range(16)]
    with launches:
        crops = decoding.resized_crops(images, [(1, 2, 5, 6)] * 16, 4, Interpolation.bicubic)
    assert torch.equal(crops[:, 0, 0, 0], torch.arange(16, dtype=torch.uint8))
    assert (launches.kernels, launches.copies, launches.operations) == (2, 1, 0)

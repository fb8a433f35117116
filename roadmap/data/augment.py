"""What happens to a batch on the device after it was cut: RandAugment, and random erasing. Used by `fast`.

Which image gets what is known on the CPU (`policy`), so a batch is worked on operation by operation without asking the device anything.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from roadmap.config.choices import Interpolation
from roadmap.data import ops
from roadmap.data.draws import normals
from roadmap.data.policy import Layer, Policy

FEW = 4  # images at a time on a CPU: what is in between then stays in memory that is at hand


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a small tensor, without waiting for it on a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def rand_augment(images: Tensor, policy: Policy, layers: Sequence[Layer], interpolation: Interpolation) -> Tensor:
    """Let each image have its operations, one layer after the other: values 0 to 255 `(B, H, W, C)` -> uint8 `(B, H, W, 3)`."""
    if images.is_floating_point():
        images = images.round().to(torch.uint8)
    images = images.expand(-1, -1, -1, 3).contiguous()
    fill = to_device(torch.tensor(policy.fill, dtype=torch.uint8).repeat(images.shape[2], 1), images.device)
    step = len(images) if images.device.type == "cuda" else FEW
    for start in range(0, len(images), step):
        for layer in layers:
            part = slice(start, start + step)
            apply_layer(images[part], Layer(layer.ops[part], layer.args[part]), fill, interpolation)
    return images


def apply_layer(images: Tensor, layer: Layer, fill: Tensor, interpolation: Interpolation) -> None:
    """Let each image of a batch, uint8 `(B, S, S, 3)`, have its operation, in place."""
    tabled(images, layer)
    for op, blend in ops.BLENDS.items():
        rows = np.flatnonzero(layer.ops == op)
        if len(rows):
            at, factors = placed(images, rows, layer.args[rows].astype(np.float32))
            images.index_copy_(0, at, blend(images.index_select(0, at), factors))
    size = images.shape[1]
    for names, move, how in (
        (ops.SLIDES, ops.slid, lambda row: ops.slide_of(str(layer.ops[row]), float(layer.args[row]), size)),
        (("Rotate",), ops.rotated, lambda row: ops.rotation_of(float(layer.args[row]), size)),
    ):
        rows = np.flatnonzero(np.isin(layer.ops, names))
        if len(rows):
            at, moves = placed(images, rows, np.array([how(row) for row in rows]))
            images.index_copy_(0, at, move(images.index_select(0, at), moves, fill, interpolation))


def placed(images: Tensor, rows: np.ndarray, values: np.ndarray) -> tuple[Tensor, Tensor]:
    """Copy the places of images in the batch, and what their operation needs, to the device."""
    return to_device(torch.from_numpy(rows), images.device), to_device(torch.from_numpy(values), images.device)


def tabled(images: Tensor, layer: Layer) -> None:
    """Apply the operations that are tables of values, all of them with one look-up."""
    groups = [
        np.flatnonzero(np.isin(layer.ops, ops.FIXED)),
        *(np.flatnonzero(layer.ops == op) for op in (*ops.TABLES_OF, "Contrast")),
    ]
    rows = np.concatenate(groups)
    if not len(rows):
        return
    at = to_device(torch.from_numpy(rows), images.device)
    chosen, done, tables = images.index_select(0, at), 0, []
    for kind, group in zip(("fixed", *ops.TABLES_OF, "Contrast"), groups, strict=True):
        some = chosen[done : done + len(group)]
        done += len(group)
        if not len(group):
            continue
        if kind == "fixed":
            table = np.stack([ops.fixed_table(layer.ops[row], layer.args[row]) for row in group])
            tables.append(to_device(torch.from_numpy(table), images.device)[:, None, :].expand(-1, 3, -1))
        elif kind == "Contrast":
            factors = to_device(torch.from_numpy(layer.args[group].astype(np.float32)), images.device)
            tables.append(ops.contrast_tables(some, factors))
        else:
            tables.append(ops.TABLES_OF[kind](some))
    images.index_copy_(0, at, ops.look_up(chosen, torch.cat(tables)))


def erase(images: Tensor, boxes: np.ndarray, starts: np.ndarray) -> None:
    """Fill each image's box, int64 `(B, 4)` as from `policy.draw_erased`, with normal noise: float32 `(B, H, W, 3)`, in place.

    A pixel's noise depends on where its image's numbers start (uint64 `(B,)`) and on its own place.
    """
    size, rows = images.shape[1], np.flatnonzero(boxes[:, 2])
    if not len(rows):
        return
    total = int((boxes[rows, 2] * boxes[rows, 3]).sum())
    about = np.column_stack(
        (rows, boxes[rows], starts[rows].view(np.int64), np.cumsum(boxes[rows, 2] * boxes[rows, 3]))
    )
    columns = to_device(torch.from_numpy(about), images.device)
    pixel = torch.arange(total, device=images.device)
    # With the size given, nothing waits to hear from the device how long the result is.
    box = torch.repeat_interleave(columns[:, 3] * columns[:, 4], output_size=total)
    row, top, left, height, width, start, end = columns[box].unbind(1)
    within = pixel - (end - height * width)
    place = (top + within // width) * size + left + within % width
    channels = torch.arange(3, device=images.device)
    noise = normals(start[:, None], place[:, None] * 3 + channels)
    images.view(-1, 3).index_copy_(0, row * size**2 + place, noise)

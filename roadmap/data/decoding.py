"""From files to crops of bytes, for the fast pipeline: decode an image (CPU or nvJPEG) and resize a box of it.

Pillow's result is the reference. In training ordinary JPEGs are decoded by libjpeg through torchvision, which gives the
same bytes with less work; all others, those that libjpeg refuses, and what is evaluated by Pillow itself, as in the
reference pipeline. Both ignore the orientation that a file may specify (EXIF).
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from roadmap.config.choices import Crop, Decoder, Interpolation
from roadmap.data import transforms
from roadmap.data.datasets import BatchSpec, Split
from roadmap.data.folders import open_image, read_image
from roadmap.data.image_ops import to_device
from roadmap.data.random_crop import draw_box
from roadmap.data.workers import load_batches
from roadmap.net.kernels.triton_support import ceil_div, interpreted, why_no_triton

log = logging.getLogger(__name__)

Box = tuple[int, int, int, int]  # top, left, height, width
NO_BOX: Box = (-1, -1, -1, -1)  # the box of what is cut already
END_OF_JPEG = (0xFF, 0xD9)
# Files, each uint8 `(bytes,)` -> images uint8 `(3, H, W)`; raises RuntimeError for what it refuses.
DecodeMany = Callable[[list[Tensor]], list[Tensor]]


def read_jpeg(path: Path) -> tuple[Tensor, int, int] | None:
    """Return bytes (uint8), height, width of a JPEG that libjpeg decodes to RGB as Pillow does; None for other files.

    Pillow reads the header, and refuses one that claims too many pixels before any is decoded. The result is then None,
    and the error comes when Pillow is asked for the image itself.
    """
    try:
        with open_image(path) as file:
            with Image.open(file, formats=("JPEG",)) as image:
                usual, height, width = image.format == "JPEG" and image.mode in ("RGB", "L"), image.height, image.width
            if not usual:
                return None
            file.seek(0)
            data = bytearray(os.fstat(file.fileno()).st_size)
            file.readinto(data)
    except MemoryError:
        raise
    except Exception:
        return None
    return torch.frombuffer(data, dtype=torch.uint8), height, width


def decode(path: Path) -> Tensor:
    """Decode an image as RGB: uint8 `(H, W, 3)`, the bytes that Pillow gives. Raises DataError that names the file."""
    from torchvision.io import ImageReadMode, decode_jpeg

    found = read_jpeg(path)
    if found is not None:
        try:
            return decode_jpeg(found[0], mode=ImageReadMode.RGB).permute(1, 2, 0)
        except RuntimeError:  # damaged: Pillow may still read it, or says what is wrong
            pass
    return torch.from_numpy(np.array(read_image(path)))


def resized_crop(image: Tensor, box: Box, size: int, interpolation: Interpolation) -> Tensor:
    """Cut a box out of an image and resize it, smoothed where it shrinks: uint8 `(H, W, 3)` -> uint8 `(size, size, 3)`.

    A box without pixels, possible for an image of a pixel or two, becomes black, as with Pillow.
    """
    top, left, height, width = box
    if not height or not width:
        return image.new_zeros(size, size, 3)
    planes = image[top : top + height, left : left + width].permute(2, 0, 1)[None]
    # Channels-last is torch's fast way, and the one whose arithmetic is Pillow's, on processors with AVX2.
    planes = planes.contiguous(memory_format=torch.channels_last)
    planes = F.interpolate(planes, (size, size), mode=interpolation.value, antialias=True, align_corners=False)
    return planes[0].permute(1, 2, 0)


def resized_crops(images: Sequence[Tensor], boxes: Sequence[Box], size: int, interpolation: Interpolation) -> Tensor:
    """Do what `resized_crop` does for many images, uint8 `(3, H, W)` -> `(B, size, size, 3)`.

    On a GPU two kernels make Pillow's bytes, elsewhere one image is resized after the other.
    """
    if why_no_triton(images[0].device) is None:
        return resized_crops_by_triton(images, boxes, size, interpolation)
    pairs = zip(images, boxes, strict=True)
    return torch.stack([resized_crop(image.permute(1, 2, 0), box, size, interpolation) for image, box in pairs])


def resized_crops_by_triton(
    images: Sequence[Tensor], boxes: Sequence[Box], size: int, interpolation: Interpolation
) -> Tensor:
    """Do what `resized_crops` does for contiguous images in two kernels, however many there are."""
    from roadmap.data import triton_crops as made

    table, rows = [], 0
    for image, (top, left, height, width) in zip(images, boxes, strict=True):
        assert image.is_contiguous()  # the kernels only get its address
        line = image.shape[2]
        table.append((image.data_ptr(), image.shape[1] * line, line, top * line + left, height, width, rows))
        rows += height
    where = to_device(torch.tensor(table), images[0].device)
    between = images[0].new_empty(rows, 3, size)
    crops = images[0].new_empty(len(images), size, size, 3)
    columns, options = ceil_div(size, made.COLUMNS.value), {} if interpreted() else {"enable_fp_fusion": False}
    cubic, highest = interpolation == Interpolation.bicubic, max(box[2] for box in boxes)
    if rows:
        grid = len(images), ceil_div(highest, made.ROWS.value), columns
        made.across_kernel[grid](where, between, SIZE=size, CUBIC=cubic, **options)
    grid = len(images), ceil_div(size, made.ROWS.value), columns
    made.down_kernel[grid](where, between, crops, SIZE=size, CUBIC=cubic, **options)
    return crops


@dataclass(frozen=True)
class TrainCrop:
    """A training image of a split: decoded, and its box or the whole of it resized. Called with its id in a worker."""

    split: Split
    size: int
    interpolation: Interpolation
    random: bool  # a random box, else the whole image
    seed: int
    epoch: int

    def box(self, index: int, height: int, width: int) -> Box:
        """Return what is cut out of the image."""
        return draw_box(self.seed, self.epoch, index, height, width) if self.random else (0, 0, height, width)

    def __call__(self, index: int) -> Tensor:
        """Return uint8 `(size, size, 3)`. Raises DataError."""
        image = decode(self.split.path(index))
        return resized_crop(image, self.box(index, image.shape[0], image.shape[1]), self.size, self.interpolation)


@dataclass(frozen=True)
class NvjpegReader:
    """A training image for nvJPEG: the file's bytes and the box, or the crop if the file is no ordinary JPEG.

    With `every_other` images with an odd id are decoded here: which ones does not depend on what is fast.
    """

    train_crop: TrainCrop
    every_other: bool = False

    def __call__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return uint8 `(bytes,)` and int64 `(4,)`, or uint8 `(size, size, 3)` and `NO_BOX`. Raises DataError."""
        found = None if self.every_other and index % 2 else read_jpeg(self.train_crop.split.path(index))
        # nvJPEG makes something of a file that was cut short; whether that is an image, libjpeg decides.
        if found is None or tuple(found[0][-2:].tolist()) != END_OF_JPEG:
            return self.train_crop(index), torch.tensor(NO_BOX)
        data, height, width = found
        return data, torch.tensor(self.train_crop.box(index, height, width))


def collate_encoded(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pack a batch: all files concatenated, the bytes of each, the boxes of all images `(B, 4)`, and the crops."""
    data, boxes = zip(*items, strict=True)
    files = [part for part in data if part.ndim == 1]
    crops = [part for part in data if part.ndim == 3]
    lengths, nothing = torch.tensor([len(file) for file in files]), torch.empty(0, dtype=torch.uint8)
    return torch.cat([nothing, *files]), lengths, torch.stack(boxes), torch.stack(crops) if crops else nothing


def decode_batch(
    batch: tuple[Tensor, Tensor, Tensor, Tensor],
    ids: Sequence[int],
    train_crop: TrainCrop,
    decode_many: DecodeMany,
    device: torch.device,
    refused: list[int],
) -> Tensor:
    """Decode and cut a batch on the device: uint8 `(B, size, size, 3)`.

    What the decoder refuses is decoded on the CPU, and its id added to `refused`.
    """
    data, lengths, boxes, crops = batch
    cut: list[Box] = [tuple(box) for box in boxes.tolist()]
    order = [i for i, box in enumerate(cut) if box == NO_BOX]
    parts = [crops.to(device, non_blocking=True)] if order else []
    images: dict[int, Tensor] = {}
    coded = (i for i, box in enumerate(cut) if box != NO_BOX)
    for i, image in zip(coded, decode_or_none(list(data.split(lengths.tolist())), decode_many), strict=True):
        top, left, height, width = cut[i]
        # Where the decoder found fewer pixels than Pillow, the box is not in its image.
        if image is None or image.shape[1] < top + height or image.shape[2] < left + width:
            refused.append(ids[i])
            order.append(i)
            parts.append(train_crop(ids[i])[None].to(device))
        else:
            images[i] = image
    if images:
        order += images
        of_images = [cut[i] for i in images]
        parts.append(resized_crops(list(images.values()), of_images, train_crop.size, train_crop.interpolation))
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts)[to_device(torch.tensor(order).argsort(), device)]


def decode_or_none(files: list[Tensor], decode_many: DecodeMany) -> list[Tensor | None]:
    """Decode files together or, if one is refused, one by one; None for those that are refused."""
    if not files:
        return []
    try:
        return list(decode_many(files))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return [None] if len(files) == 1 else [decode_or_none([file], decode_many)[0] for file in files]


@cache
def decoders_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of all epochs: memory that one has given up serves the next.

    Its kernels go in between those of a training step; else each would wait for one of them to end.
    """
    return torch.cuda.Stream(device, priority=-1)


def side_stream(device: torch.device) -> Callable[[Callable[[], Tensor]], Tensor]:
    """Return how to call what decodes on a GPU: on a stream of its own, for whose result training waits.

    torchvision's decoder writes from a stream of its own into memory that may have been given up by work which is
    queued but not done. Here such memory can only be that of the batch before, whose copies and kernels are waited for.
    """
    if device.type != "cuda":
        return lambda work: work()
    side = decoders_stream(device)

    def aside(work: Callable[[], Tensor]) -> Tensor:
        """Return what `work` returns."""
        side.synchronize()
        with torch.cuda.stream(side):
            result = work()
        training = torch.cuda.current_stream(device)
        training.wait_stream(side)
        result.record_stream(training)
        return result

    return aside


def train_crops(spec: BatchSpec) -> Iterator[Tensor]:
    """Yield crops of class folders, uint8 `(B, size, size, 3)` on the device; random boxes with `data.crop=resized`."""
    data, device, index_batches = spec.data, spec.device, spec.index_batches
    is_random = data.crop == Crop.resized
    train_crop = TrainCrop(spec.split, data.image_size, spec.recipe.interpolation, is_random, spec.seed, spec.epoch)
    if not data.decoder.needs_gpu:
        for crops in load_batches(train_crop, torch.stack, index_batches, data.workers, device):
            yield crops.to(device, non_blocking=True)
        return
    from torchvision.io import ImageReadMode, decode_jpeg

    decode_many: DecodeMany = partial(decode_jpeg, mode=ImageReadMode.RGB, device=device)
    refused: list[int] = []
    reader = NvjpegReader(train_crop, every_other=data.decoder == Decoder.both)
    files = load_batches(reader, collate_encoded, index_batches, data.workers, device)
    aside = side_stream(device)
    for ids, batch in zip(index_batches, files, strict=True):
        yield aside(partial(decode_batch, batch, ids.tolist(), train_crop, decode_many, device, refused))
    if refused:
        seen = sum(map(len, index_batches))
        line = "epoch %d: nvJPEG refused %d of %d images, which were decoded on the CPU"
        log.info(line, spec.epoch + 1, len(refused), seen)


def centre_crop(split: Split, crop: Callable[[Image.Image], Image.Image], index: int) -> Tensor:
    """Return an image as the reference pipeline has it before it is normalised, to the byte: uint8 `(size, size, 3)`.

    Raises DataError.
    """
    return torch.from_numpy(np.array(crop(split.read(index))))


def eval_crops(spec: BatchSpec) -> Iterator[Tensor]:
    """Yield images resized and cropped at the centre by Pillow, uint8 `(B, size, size, 3)`, on the device."""
    reader = partial(centre_crop, spec.split, transforms.eval_crop(spec.data, spec.recipe))
    for crops in load_batches(reader, torch.stack, spec.index_batches, spec.data.workers, spec.device):
        yield crops.to(spec.device, non_blocking=True)

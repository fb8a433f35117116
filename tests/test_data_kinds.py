"""Images of every kind that people have: converted to the same bytes everywhere, or named and refused everywhere."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from roadmap.config.choices import Interpolation
from roadmap.config.images import DataConfig
from roadmap.config.recipe import RecipeConfig
from roadmap.config.schema import Config
from roadmap.data import decoding, eval_batches, train_batches, verify
from roadmap.data.datasets import load
from roadmap.data.folders import label_note, read_image
from roadmap.errors import DataError

CPU = torch.device("cpu")
RAMP = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
COLOURS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
RGB, ALPHA = Image.fromarray(COLOURS), Image.linear_gradient("L").resize((50, 40))


def encoded(image: Image.Image, kind: str = "PNG", **how) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def png(pixels: np.ndarray, colour_type: int, depth: int = 16) -> bytes:
    """Write what Pillow does not: `(H, W, channels)` of 16 bits, or rows of packed bits."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    width = width if depth == 16 else width * 8 // depth
    rows = b"".join(b"\0" + row.astype(f">u{2 if depth == 16 else 1}").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def with_alpha(mode: str = "RGBA") -> Image.Image:
    image = RGB.convert(mode)
    image.putalpha(ALPHA)
    return image


def grey(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels.astype(np.uint8)[..., None], 3, 2)


PALETTE = RGB.quantize(16)
DEEP = np.stack([RAMP, RAMP[::-1], RAMP.T], 2)
L = np.asarray(RGB.convert("L"))
CONVERTED = {  # the file, and the pixels that it must come to
    "16-bit grey": lambda: (encoded(Image.fromarray(RAMP)), grey(RAMP >> 8)),
    "16-bit colour": lambda: (png(DEEP, 2), DEEP >> 8),
    "16-bit grey and alpha": lambda: (png(np.stack([RAMP, RAMP.T], 2), 4), grey(RAMP >> 8)),
    "16-bit colour and alpha": lambda: (png(np.dstack([DEEP, RAMP]), 6), DEEP >> 8),
    "16-bit, all one dark grey": lambda: (
        encoded(Image.fromarray(np.full_like(RAMP, 300))),
        grey(np.full_like(RAMP, 1)),
    ),
    "1 bit": lambda: (encoded(RGB.convert("1")), grey(np.asarray(RGB.convert("1")) * 255)),
    "2 bits": lambda: (png(np.full((1, 1), 0b00011011), 0, 2), grey(np.array([[0, 85, 170, 255]]))),
    "4 bits": lambda: (png(np.full((1, 1), 0x1F), 0, 4), grey(np.array([[17, 255]]))),
    "a palette": lambda: (encoded(PALETTE), np.asarray(PALETTE.convert("RGB"))),
    "a palette, one colour transparent": lambda: (
        encoded(PALETTE, transparency=3),
        np.asarray(PALETTE.convert("RGB")),
    ),
    "a palette with alpha": lambda: (
        encoded(PALETTE, transparency=bytes(range(0, 256, 16))),
        np.asarray(PALETTE.convert("RGB")),
    ),
    "grey, one level transparent": lambda: (encoded(RGB.convert("L"), transparency=7), grey(L)),
    "LA": lambda: (encoded(with_alpha("L")), grey(L)),
    "RGBA": lambda: (encoded(with_alpha()), COLOURS),
    "RGBA, all black and opaque": lambda: (encoded(Image.new("RGBA", (9, 9), (0, 0, 0, 255))), np.zeros((9, 9, 3))),
    "WebP with alpha": lambda: (encoded(with_alpha(), "WEBP", lossless=True, exact=True), COLOURS),
    "BMP with alpha": lambda: (encoded(with_alpha(), "BMP"), COLOURS),
    "BMP of 1 bit": lambda: (encoded(RGB.convert("1"), "BMP"), grey(np.asarray(RGB.convert("1")) * 255)),
    "CMYK": lambda: (encoded(RGB.convert("CMYK"), "JPEG"), None),
    "several views": lambda: (encoded(RGB, "MPO", save_all=True, append_images=[RGB.rotate(180)]), None),
}
REFUSED = {  # the file, and what is said of it
    "12 bits in 16": lambda: (encoded(Image.fromarray(RAMP >> 4)), "lowest 12 of 16 bits"),
    "a mask in 16 bits": lambda: (encoded(Image.fromarray(RAMP % 10)), "lowest 12 of 16 bits"),
    "12 bits of colour in 16": lambda: (png(DEEP >> 4, 2), "lowest 12 of 16 bits"),
    "a shape in alpha alone": lambda: (
        encoded(Image.merge("RGBA", [Image.new("L", ALPHA.size)] * 3 + [ALPHA])),
        "only in its transparency",
    ),
    "an animated PNG": lambda: (encoded(RGB, save_all=True, append_images=[RGB.rotate(90)]), "animated, 2 frames"),
    "an animated WebP": lambda: (
        encoded(RGB, "WEBP", save_all=True, append_images=[RGB.rotate(90)]),
        "animated, 2 frames",
    ),
    "a float TIFF by another name": lambda: (
        encoded(Image.fromarray(L / 255.0), "TIFF"),
        "does not begin like a JPEG, PNG, BMP, WEBP",
    ),
    "a GIF by another name": lambda: (encoded(RGB, "GIF"), "does not begin like a JPEG, PNG, BMP, WEBP"),
    "cut short": lambda: (encoded(RGB, "JPEG", quality=95)[:-600], "truncated"),
}


@pytest.fixture
def root(tmp_path):
    for split, name in (("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")):
        (tmp_path / "set" / split / name).mkdir(parents=True)
        for i in range(2):
            (tmp_path / "set" / split / name / f"{i}.png").write_bytes(encoded(RGB))
    return tmp_path / "set"


def config(root, **changes) -> DataConfig:
    settings = {"name": "imagefolder", "root": str(root), "image_size": 16, "resize_size": 16, "crop": "resized"}
    return DataConfig(**(settings | changes))


@pytest.mark.parametrize("kind", CONVERTED)
def test_an_image_is_converted_over_its_full_range_by_every_decoder(tmp_path, recwarn, kind):
    path = tmp_path / "0.png"
    data, expected = CONVERTED[kind]()
    path.write_bytes(data)
    got, decoded = np.asarray(read_image(path)), decoding.decode(path).numpy()
    assert decoding.read_jpeg(path) is None  # so neither libjpeg nor nvJPEG is asked
    assert not recwarn.list
    if expected is None:  # as Pillow has it, whose arithmetic is the measure
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB"))
    assert got.dtype == decoded.dtype == np.uint8
    assert np.array_equal(got, expected)
    assert np.array_equal(decoded, expected)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_be_lost_is_refused_by_check_training_and_evaluation_alike(root, tmp_path, capsys, kind):
    data, words = REFUSED[kind]()
    for split in ("train", "val"):
        (root / split / "b" / "1.png").write_bytes(data)
    ids = [torch.arange(4)]
    for pipeline in ("fast", "reference"):
        settings, recipe = config(root, pipeline=pipeline), RecipeConfig()
        found = load(settings)
        for batches in (
            train_batches(found.train, settings, recipe, ids, seed=0, epoch=0, device=CPU),
            eval_batches(found.val, settings, recipe, ids, device=CPU),
        ):
            with pytest.raises(DataError, match=words) as raised:
                list(batches)
            assert "/b/1.png: cannot be decoded as an image (" in str(raised.value)
    with pytest.raises(DataError, match="2 of 8 images cannot be read"):
        verify.data_check(Config(mode="data_check", data=config(root), paths={"runs": str(tmp_path / "runs")}))
    assert capsys.readouterr().err.count(words) == 2


def test_what_was_found_whole_by_other_rules_is_opened_again(root, tmp_path, monkeypatch, capsys):
    settings = Config(mode="data_check", data=config(root), paths={"runs": str(tmp_path / "runs")})
    monkeypatch.setattr(verify, "RULES", verify.RULES - 1)
    verify.data_check(settings)
    assert "fully checked on" in verify.verification_note(load(settings.data), settings.data, settings.paths.runs)
    monkeypatch.undo()
    assert "not fully checked" in verify.verification_note(load(settings.data), settings.data, settings.paths.runs)
    verify.data_check(settings)
    assert "opened before" not in capsys.readouterr().err
    assert verify.checked_on(settings.paths.runs, load(settings.data).fingerprint)


def test_a_jpeg_without_its_end_is_not_left_to_nvjpeg(root):
    """nvJPEG makes an image of what there is; libjpeg refuses it, or reads it where only the mark is missing."""

    def decode_many(files):
        assert all(file[-2:].tolist() == [0xFF, 0xD9] for file in files)
        return [decode_jpeg(file, mode=ImageReadMode.RGB) for file in files]

    whole = encoded(RGB, "JPEG", quality=95)
    for i, data in enumerate((whole, whole + b"\0\0")):
        (root / "train" / "a" / f"{i}.png").write_bytes(data)
    crop = decoding.TrainCrop(load(config(root)).train, 16, Interpolation.bicubic, True, 0, 0)
    reader = decoding.NvjpegReader(crop)
    batch = decoding.collate_encoded([reader(i) for i in (0, 1)])
    crops = decoding.decode_batch(batch, [0, 1], crop, decode_many, CPU, [])
    assert torch.equal(crops, torch.stack([crop(0), crop(1)]))  # each decoded elsewhere
    (root / "train" / "a" / "1.png").write_bytes(whole[:-600])
    with pytest.raises(DataError, match=r"a/1.png: cannot be decoded"):
        reader(1)


# Classes


def test_a_set_of_one_class_is_refused_wherever_it_comes_from(tmp_path, root):
    for split in ("train", "val"):
        (root / split / "b").rename(root / f"b of {split}")
    with pytest.raises(DataError, match=r"set/train: a single class, a, for which accuracy means nothing") as raised:
        load(config(root))
    assert raised.value.code == 65
    for split in ("train", "val"):
        np.savez(tmp_path / f"{split}.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.zeros(4, np.int64))
    with pytest.raises(DataError, match=r"data=mine: a single class, 0, for which"):
        load(DataConfig(name="mine", kind="npz", root=str(tmp_path)))


@pytest.mark.parametrize(
    ("order", "labels"),
    [("text", {"1": 0, "10": 1, "2": 2, "9": 3}), ("numeric", {"1": 0, "2": 1, "9": 2, "10": 3})],
)
def test_labels_follow_the_order_that_is_chosen(root, order, labels):
    for split in ("train", "val"):
        for old, new in (("a", "10"), ("b", "9")):
            (root / split / old).rename(root / split / new)
        for new in ("1", "2"):
            (root / split / new).mkdir()
            (root / split / new / "0.png").write_bytes(encoded(RGB))
    found = load(config(root, class_order=order))
    assert {name: label for label, name in enumerate(found.classes)} == labels
    for split in (found.train, found.val):
        assert all(labels[split.path(i).parent.name] == label for i, label in enumerate(split.labels.tolist()))
    note = label_note(found.classes, order)
    assert all(f"{name}={label}" in note for name, label in labels.items())
    assert f"data.class_order={'numeric' if order == 'text' else 'text'} gives others" in note


def test_classes_with_one_order_need_no_note():
    assert label_note(("n01440764", "n01443537", "n02110341"), "text") is None
    assert label_note(("ant", "bee", "class 2"), "numeric") is None
    assert "class10=0" in label_note(("class10", "class9"), "text")

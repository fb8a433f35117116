"""Class folders through the fast pipeline: the pixels that Pillow reads; the same images however they are shared."""

import io
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode

from roadmap.config.choices import Decoder, Interpolation
from roadmap.config.images import DataConfig
from roadmap.config.recipe import RecipeConfig
from roadmap.data import check_pipeline, decoding, eval_batches, pipeline_note, train_batches
from roadmap.data.datasets import BatchSpec, load
from roadmap.data.folders import read_image
from roadmap.data.sampling import eval_index_batches, train_index_batches
from roadmap.errors import ConfigError, DataError
from roadmap.runs.run_dir import run_path
from roadmap.steps.compose import compose
from roadmap.training.train import train

from .records import ledger, newest, same, status, stopped_at

CPU = torch.device("cpu")
OFFICIAL = RecipeConfig(rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25, interpolation="bicubic", batch_size=4)
PIPELINES = ("fast", "reference")


def picture(seed: int, size: tuple[int, int] = (90, 70)) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **how) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path):
    """Two classes, 16 training and 5 validation images each, of many shapes."""
    for split, number in (("train", 16), ("val", 5)):
        for label, name in enumerate("ab"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(number):
                image = picture(100 * label + i, (60 + 7 * (i % 5), 50 + 11 * (i % 3)))
                (tmp_path / split / name / f"{i:02}.jpg").write_bytes(encoded(image, quality=90))
    return tmp_path


def config(root, **changes) -> DataConfig:
    settings = {"name": "imagefolder", "root": str(root), "image_size": 32, "resize_size": 40, "flip": True}
    settings |= {"crop": "resized", "pipeline": "fast", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    return DataConfig(**(settings | changes))


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def deep() -> bytes:
    return encoded(Image.fromarray((np.arange(70 * 90).reshape(70, 90) * 9).astype(np.uint16)), "PNG")


GOOD = {
    "plain": lambda: encoded(picture(1)),
    "progressive": lambda: encoded(picture(1), progressive=True),
    "every pixel its own colour": lambda: encoded(picture(1), subsampling=0, quality=100),
    "stored as RGB": lambda: encoded(picture(1), keep_rgb=True),
    "restart markers": lambda: encoded(picture(1), restart_marker_blocks=3),
    "grey": lambda: encoded(picture(1).convert("L")),
    "CMYK": lambda: encoded(picture(1).convert("CMYK")),
    "turned by EXIF": lambda: encoded(picture(1), exif=exif(6)),
    "PNG by another name": lambda: encoded(picture(1), "PNG"),
    "PNG with a palette": lambda: encoded(picture(1).convert("P"), "PNG"),
    "PNG with alpha": lambda: encoded(picture(1).convert("RGBA"), "PNG"),
    "16-bit PNG": deep,
    "WebP": lambda: encoded(picture(1), "WEBP"),
    "BMP": lambda: encoded(picture(1), "BMP"),
    "one pixel": lambda: encoded(Image.new("RGB", (1, 1), (200, 30, 90))),
    "a line": lambda: encoded(picture(1, (80, 1))),
    "bytes after its end": lambda: encoded(picture(1)) + b"\0" * 500,
}


def bomb() -> bytes:
    """Return a JPEG whose header claims 60,000 x 60,000 pixels."""
    whole = bytearray(encoded(picture(1)))
    frame = whole.index(b"\xff\xc0")
    whole[frame + 5 : frame + 9] = (60_000).to_bytes(2, "big") * 2
    return bytes(whole)


BAD = {
    "truncated": lambda: encoded(picture(1), quality=100)[:-900],
    "cut in its header": lambda: encoded(picture(1))[:100],
    "broken tables": lambda: encoded(picture(1)).replace(b"\xff\xc4", b"\xff\xc9"),
    "no image": lambda: b"<html>404 Not Found</html>",
    "a bomb": bomb,
    "a PNG bomb": lambda: encoded(Image.new("1", (20_000, 20_000)), "PNG"),
    "empty": lambda: b"",
}


@pytest.mark.parametrize("kind", GOOD)
def test_every_image_is_decoded_to_pillows_bytes(tmp_path, kind):
    path = tmp_path / "0.JPEG"
    path.write_bytes(GOOD[kind]())
    expected = np.asarray(read_image(path))
    got = decoding.decode(path)
    assert got.dtype == torch.uint8
    assert np.array_equal(got.numpy(), expected)
    if kind == "turned by EXIF":
        assert expected.shape == (70, 90, 3)  # as it lies in the file


@pytest.mark.parametrize("kind", [*GOOD, *BAD])
def test_both_pipelines_take_and_refuse_the_same_files(root, kind):
    data = (GOOD | BAD)[kind]()
    found = {pipeline: load(config(root, pipeline=pipeline)) for pipeline in PIPELINES}
    for split in ("train", "val"):
        (root / split / "a" / "01.jpg").write_bytes(data)
    messages = set()
    for pipeline in PIPELINES:
        settings, images, ids = config(root, pipeline=pipeline), found[pipeline], [torch.tensor([0, 1, 2])]
        train_part = train_batches(images.train, settings, OFFICIAL, ids, seed=0, epoch=0, device=CPU)
        val_part = eval_batches(images.val, settings, OFFICIAL, ids, device=CPU)
        for split, batches in (("train", train_part), ("val", val_part)):
            if kind in GOOD:
                assert len(list(batches)) == 1
                continue
            with pytest.raises(DataError, match=rf"{split}/a/01.jpg: cannot be decoded as an image") as raised:
                list(batches)
            messages.add(str(raised.value))
    assert len(messages) == (0 if kind in GOOD else 2)  # one of each split, word for word the same in both pipelines
    assert not any("\n" in message for message in messages)


def test_damaged_files_are_read_or_refused_as_pillow_does(tmp_path):
    """Files with bytes changed or missing: either both give the same pixels, or the same message."""
    path, draw, outcomes = tmp_path / "0.jpg", np.random.default_rng(3), set()
    ways = ({}, {"progressive": True}, {"restart_marker_blocks": 2}, {"subsampling": 0})
    wholes = [encoded(picture(1), **how) for how in ways]
    for i in range(400):
        hurt = np.frombuffer(wholes[i % 4], np.uint8).copy()
        if i % 3:
            hurt[draw.integers(len(hurt) // 4 * (i % 3), len(hurt), 2)] = draw.integers(0, 256, 2)
        path.write_bytes(hurt.tobytes()[: len(hurt) - (draw.integers(0, 40) if i % 2 else 0)])
        results = []
        for read in (lambda: decoding.decode(path).numpy(), lambda: np.asarray(read_image(path))):
            try:
                results.append(read().tobytes())
            except DataError as error:
                results.append(str(error))
        assert results[0] == results[1]
        outcomes.add(type(results[0]))
    assert outcomes == {bytes, str}


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    "box", [(0, 0, 70, 90), (5, 7, 40, 31), (3, 4, 1, 30), (60, 80, 2, 2), (10, 10, 32, 32), (2, 0, 60, 80)]
)
def test_a_crop_is_pillows_within_two_levels(box, interpolation):
    """Pillow's arithmetic with other whole weights: off by one here and there, by two where few pixels are enlarged."""
    image = picture(4)
    crop = decoding.resized_crop(torch.from_numpy(np.array(image)), box, 32, Interpolation(interpolation))
    got = crop.numpy().astype(int)
    expected = np.asarray(TF.resized_crop(image, *box, [32, 32], InterpolationMode(interpolation))).astype(int)
    assert np.abs(got - expected).max() <= 2
    assert np.abs(got - expected).mean() < 0.1


def test_a_box_without_pixels_is_black_as_pillows_is():
    image = torch.full((1, 1, 3), 9, dtype=torch.uint8)
    for box in ((0, 0, 0, 0), (1, 1, 0, 0)):
        expected = TF.resized_crop(Image.new("RGB", (1, 1), (9, 9, 9)), *box, [8, 8], InterpolationMode.BICUBIC)
        got = decoding.resized_crop(image, box, 8, Interpolation.bicubic)
        (together,) = decoding.resized_crops([image.permute(2, 0, 1)], [box], 8, Interpolation.bicubic)
        assert np.array_equal(got.numpy(), np.asarray(expected)) and torch.equal(together, got)


def crop_of_pillow(pixels, box, size, interpolation):
    """Resize across, then down: Pillow 13 would begin with the columns of a high box, others never do."""
    top, left, height, width = box
    if not height or not width:
        return np.zeros((size, size, 3), dtype=np.uint8)
    cut = Image.fromarray(pixels[top : top + height, left : left + width])
    mode = Image.Resampling[interpolation.upper()]
    return np.asarray(cut.resize((size, height), mode).resize((size, size), mode))


def check_crops(size, interpolation, device):
    """Check that Triton's crops, of boxes of all shapes, have Pillow's bytes."""
    draw = np.random.default_rng(size)
    shapes = (70, 90), (300, 3), (1, 1), (size, size)
    pixels = [draw.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    boxes = [
        (0, (0, 0, 70, 90)), (0, (5, 7, 40, 31)), (0, (3, 4, 1, 30)), (0, (69, 89, 1, 1)), (1, (0, 0, 300, 3)),
        (1, (299, 1, 1, 2)), (2, (0, 0, 1, 1)), (2, (1, 1, 0, 0)), (3, (0, 0, size, size)),
    ]  # fmt: skip
    images = [torch.from_numpy(pixels[i]).permute(2, 0, 1).contiguous().to(device) for i, _ in boxes]
    got = decoding.resized_crops(images, [box for _, box in boxes], size, interpolation).cpu()
    expected = [crop_of_pillow(pixels[i], box, size, interpolation) for i, box in boxes]
    assert np.array_equal(got.numpy(), np.stack(expected))
    assert np.array_equal(got[-1].numpy(), pixels[3])


def test_what_the_gpus_decoder_makes_smaller_than_pillow_sees_it_is_decoded_here(root):
    def smaller(files):
        return [image[:, :4, :4] for image in stubborn(0)(files)]

    data = config(root)
    split, ids = load(data).train, list(range(8))
    got, found = unpacked(split, data, ids, smaller)
    crops = [decoding.TrainCrop(split, 32, Interpolation.bicubic, True, 5, 3)(i) for i in ids]
    assert found and torch.equal(got[found], torch.stack(crops)[found])


def test_evaluation_is_the_references_to_the_byte(root):
    for resize in (40, None):
        both = []
        for pipeline in PIPELINES:
            data = config(root, pipeline=pipeline, resize_size=resize, mean=(0, 0, 0), std=(1, 1, 1))
            batches = list(eval_batches(load(data).val, data, OFFICIAL, eval_index_batches(10, 4), device=CPU))
            assert all(x.is_contiguous(memory_format=torch.channels_last) for x, _ in batches)
            both.append((torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])))
        assert torch.equal((both[0][0] * 255).round(), (both[1][0] * 255).round())
        assert torch.allclose(both[0][0], both[1][0], atol=1e-6)
        assert torch.equal(both[0][1], both[1][1])


@pytest.mark.parametrize("resize", [None, 30])
def test_a_set_in_memory_is_evaluated_alike_by_both_with_a_centre_crop_too(resize):
    both = []
    for pipeline in PIPELINES:
        sizes = {"image_size": 24, "resize_size": resize, "train_images": 20, "val_images": 20}
        data = DataConfig(name="digits", pipeline=pipeline, **sizes)
        batches = eval_batches(load(data).val, data, OFFICIAL, eval_index_batches(20, 8), device=CPU)
        both.append(torch.cat([x for x, _ in batches]))
    assert torch.allclose(*both, atol=1e-5)


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_a_set_in_memory_has_the_whole_recipe(name):
    data = DataConfig(
        name=name, image_size=32, num_classes=10, train_images=40, val_images=10, flip=True, crop="resized", rotate=10
    )
    split, halves = load(data).train, list(torch.arange(40).split(20))
    batches = [x for x, _ in train_batches(split, data, OFFICIAL, halves, seed=0, epoch=0, device=CPU)]
    assert all(x.shape == (20, 3, 32, 32) and x.is_contiguous(memory_format=torch.channels_last) for x in batches)
    bare = RecipeConfig(interpolation="bicubic")
    plain = torch.cat([x for x, _ in train_batches(split, data, bare, [torch.arange(40)], seed=0, epoch=0, device=CPU)])
    changed = (torch.cat(batches) - plain).abs().amax((1, 2, 3)) > 0.02  # more than rounding to bytes
    assert 20 < changed.sum() < 40


def images_of(split, data, index_batches, epoch: int = 3) -> dict[int, torch.Tensor]:
    ids = torch.cat(list(index_batches)).tolist()
    batches = train_batches(split, data, OFFICIAL, index_batches, seed=5, epoch=epoch, device=CPU)
    return dict(zip(ids, [image for images, _ in batches for image in images], strict=True))


def test_randomness_depends_on_seed_epoch_and_id_alone(root):
    data = config(root)
    split, order = load(data).train, train_index_batches(32, 8, 5, 3)
    whole = images_of(split, data, order)
    halves = [part for batch in order for part in batch.split(4)]
    others = {
        "skip": images_of(split, data, train_index_batches(32, 8, 5, 3, skip=2)),
        "batches": images_of(split, data, list(torch.arange(32).split(5))),
        "workers": images_of(split, config(root, workers=2), order),
        "two ranks": images_of(split, data, halves[0::2]) | images_of(split, data, halves[1::2]),
    }
    lengths = {name: len(images) for name, images in others.items()}
    assert lengths == {"skip": 16, "batches": 32, "workers": 32, "two ranks": 32}
    for name, images in others.items():
        assert all(torch.equal(image, whole[i]) for i, image in images.items()), name
    assert all(not torch.equal(image, whole[i]) for i, image in images_of(split, data, order, epoch=4).items())


def test_labels_go_with_their_images(root):
    data, split = config(root, workers=1), load(config(root)).train
    index_batches = train_index_batches(32, 8, 0, 0)
    labels = [y for _, y in train_batches(split, data, OFFICIAL, index_batches, seed=0, epoch=0, device=CPU)]
    assert torch.equal(torch.cat(labels), split.labels[torch.cat(index_batches)])


def test_a_whole_image_and_moves_work_for_folders(root):
    data = config(root, crop="pad", padding=4, rotate=10)
    assert len(images_of(load(data).train, data, train_index_batches(32, 8, 0, 0))) == 32
    data = config(root, crop="none", flip=False, mean=(0, 0, 0), std=(1, 1, 1))
    split, recipe = load(data).train, RecipeConfig(interpolation="bicubic")
    ((got, _),) = train_batches(split, data, recipe, [torch.tensor([3])], seed=0, epoch=0, device=CPU)
    expected = np.asarray(split.read(3).resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs((got[0] * 255).permute(1, 2, 0).numpy() - expected).max() < 2.1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_an_epoch_left_early_ends_its_workers(root, pipeline):
    data, ids = config(root, workers=2, pipeline=pipeline), train_index_batches(32, 2, 0, 0)
    batches = train_batches(load(data).train, data, OFFICIAL, ids, seed=0, epoch=0, device=CPU)
    next(batches)
    children = set(torch.multiprocessing.active_children())
    assert len(children) == 2
    batches.close()
    assert not children & set(torch.multiprocessing.active_children())


# nvJPEG, with another decoder in its place


def stubborn(refused: int, fails: type[Exception] = RuntimeError):
    """Return a decoder like nvJPEG's in torchvision, which refuses any batch that holds a file of so many bytes."""

    def decode_many(files: list[torch.Tensor]) -> list[torch.Tensor]:
        if any(len(file) == refused for file in files):
            raise fails("nvjpegDecode failed")
        return [decode_jpeg(file, mode=ImageReadMode.RGB) for file in files]

    return decode_many


def unpacked(split, data, ids: list[int], decode_many, every_other=False) -> tuple[torch.Tensor, list[int]]:
    train_crop = decoding.TrainCrop(split, data.image_size, Interpolation.bicubic, True, 5, 3)
    batch = decoding.collate_encoded([decoding.NvjpegReader(train_crop, every_other)(i) for i in ids])
    refused: list[int] = []
    return decoding.decode_batch(batch, ids, train_crop, decode_many, CPU, refused), refused


def test_what_the_gpus_decoder_refuses_is_decoded_here_and_counted(root):
    data = config(root)
    (root / "train" / "a" / "03.jpg").write_bytes(GOOD["CMYK"]())
    (root / "train" / "a" / "05.jpg").write_bytes(GOOD["one pixel"]())
    split, ids = load(data).train, list(range(8))
    expected = torch.stack([decoding.TrainCrop(split, 32, Interpolation.bicubic, True, 5, 3)(i) for i in ids])
    for size, refused in ((0, []), (split.path(2).stat().st_size, [2])):
        got, found = unpacked(split, data, ids, stubborn(size))
        assert torch.equal(got, expected)
        assert found == refused
    with pytest.raises(torch.OutOfMemoryError):
        unpacked(split, data, ids, stubborn(split.path(2).stat().st_size, torch.OutOfMemoryError))
    (root / "train" / "a" / "02.jpg").write_bytes(BAD["truncated"]())
    with pytest.raises(DataError, match=r"train/a/02.jpg: cannot be decoded"):
        unpacked(split, data, ids, stubborn(0))


def test_with_both_decoders_the_gpus_gets_the_even_ids_alone(root):
    data, seen = config(root), []
    split, ids = load(data).train, [5, 2, 7, 4]

    def counted(files):
        seen.extend(len(file) for file in files)
        return stubborn(0)(files)

    got, refused = unpacked(split, data, ids, counted, every_other=True)
    crops = [decoding.TrainCrop(split, 32, Interpolation.bicubic, True, 5, 3)(i) for i in ids]
    assert torch.equal(got, torch.stack(crops)) and refused == []
    assert seen == [split.path(i).stat().st_size for i in (2, 4)]
    odd, _ = unpacked(split, data, [5, 7], counted, every_other=True)
    assert torch.equal(odd, got[[0, 2]]) and len(seen) == 2


@pytest.mark.parametrize(("decoder", "number"), [("nvjpeg", 32), ("both", 16)])
def test_an_epoch_says_once_how_many_files_were_refused(root, monkeypatch, caplog, decoder, number):
    data = config(root, decoder=decoder, workers=2)
    split, seen = load(data).train, set()
    refuse = stubborn(split.path(2).stat().st_size)

    def counted(files):
        seen.update(bytes(file.numpy()) for file in files)
        return refuse(files)

    monkeypatch.setattr(
        "torchvision.io.decode_jpeg",
        lambda data, mode, device=None: counted(data) if device else decode_jpeg(data, mode),
    )
    spec = BatchSpec(split, data, OFFICIAL, list(torch.arange(32).split(8)), CPU, seed=5, epoch=3)
    with caplog.at_level(logging.INFO):
        crops = torch.cat(list(decoding.train_crops(spec)))
    monkeypatch.undo()
    expected = torch.cat(list(decoding.train_crops(replace(spec, data=config(root)))))
    assert torch.equal(crops, expected)
    assert len(seen) == number
    said = [record.getMessage() for record in caplog.records if "nvJPEG" in record.getMessage()]
    assert said == ["epoch 4: nvJPEG refused 1 of 32 images, which were decoded on the CPU"]


@pytest.mark.parametrize("decoder", ["nvjpeg", "both"])
def test_nvjpeg_without_a_gpu_or_triton_is_a_config_error_at_once(root, monkeypatch, decoder):
    data = config(root, decoder=decoder)
    split = load(data).train
    for call in (
        lambda: check_pipeline(data, OFFICIAL, CPU),
        lambda: train_batches(split, data, OFFICIAL, [], seed=0, epoch=0, device=CPU),
    ):
        with pytest.raises(ConfigError, match=rf"data\.decoder={decoder}: needs a GPU"):
            call()
    monkeypatch.setattr("roadmap.data.why_no_triton", lambda device: "Triton is not installed")
    with pytest.raises(ConfigError, match=rf"decoder={decoder}: needs a GPU and Triton, and Triton is not installed"):
        check_pipeline(data, OFFICIAL, torch.device("cuda"))
    check_pipeline(data, OFFICIAL)  # evaluation decodes on the CPU
    check_pipeline(config(root, decoder=decoder, pipeline="reference"), OFFICIAL, CPU)
    with pytest.raises(ConfigError, match="decoder=cuda: must be one of auto, cpu, nvjpeg, both"):
        config(root, decoder="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_augments_the_same_images_and_nvjpeg_is_near_libjpeg(root):
    split, order, cuda = load(config(root)).train, list(torch.arange(32).split(8)), torch.device("cuda")
    on_cpu = torch.cat([x for x, _ in train_batches(split, config(root), OFFICIAL, order, seed=0, epoch=0, device=CPU)])
    for decoder, mean_off in (("cpu", 1e-3), ("nvjpeg", 0.05), ("both", 0.03)):
        data = config(root, decoder=decoder)
        torch.cuda.set_sync_debug_mode("error" if decoder == "cpu" else "default")
        try:
            ours = [x for x, _ in train_batches(split, data, OFFICIAL, order, seed=0, epoch=0, device=cuda)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert (torch.cat(ours).cpu() - on_cpu).abs().mean() < mean_off


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("interpolation", list(Interpolation))
def test_on_a_gpu_crops_have_pillows_bytes(interpolation):
    check_crops(224, interpolation, torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nvjpeg_leaves_memory_alone_that_queued_work_has_yet_to_read(root):
    data, cuda = config(root, decoder="nvjpeg"), torch.device("cuda")
    spec = BatchSpec(load(data).train, data, OFFICIAL, list(torch.arange(32).split(8)), cuda)
    list(decoding.train_crops(spec))  # the decoder is started
    given_up = [torch.full((3, 60, 60), 7, dtype=torch.uint8, device=cuda) for _ in range(256)]
    torch.cuda._sleep(2_000_000_000)  # a second or so, while the host goes on
    read = [tensor.clone() for tensor in given_up]
    del given_up
    list(decoding.train_crops(spec))
    assert all(bool((tensor == 7).all()) for tensor in read)


# In a run


def words(root, *more: str) -> list[str]:
    return [
        "data=imagefolder", f"data.root={root}", "data.pipeline=fast", "data.image_size=32", "data.resize_size=40",
        "recipe=enhanced", "recipe.batch_size=8", "recipe.micro_batch=4", "recipe.warmup_epochs=0",
        "recipe.rand_augment=rand-m9-mstd0.5-inc1", "recipe.random_erasing=0.25",
        "recipe.mixup=0.8", "recipe.cutmix=1.0",
        "recipe.interpolation=bicubic", "wandb.mode=disabled",
        *more,
    ]  # fmt: skip


def test_a_run_that_was_stopped_goes_on_with_the_same_images(root, tmp_path):
    whole = compose("separate_downsampling", "nano", words(root, f"paths.runs={tmp_path / 'whole'}", "recipe.epochs=2"))
    train(whole)
    mine = words(root, f"paths.runs={tmp_path / 'runs'}", "data.workers=0", "recipe.epochs=2")
    config_ = compose("separate_downsampling", "nano", mine)
    with stopped_at(2):  # in the middle of the first epoch
        train(config_)
    assert status(config_)["state"] == "stopped"
    train(config_)
    assert ledger(config_) == ledger(whole)
    assert same(newest(config_), newest(whole))
    log = (run_path(config_) / "run.log").read_text()
    assert "are decoded by libjpeg in the worker processes (data.decoder=auto); slow without a GPU: no faster" in log
    notes = {decoder: str(pipeline_note(config(root, decoder=decoder), torch.device("cuda"))) for decoder in Decoder}
    assert not any("slow" in note for note in notes.values())
    assert [("nvJPEG" in note, "libjpeg" in note) for note in notes.values()] == [
        (False, True), (False, True), (True, False), (True, True),
    ]  # fmt: skip
    assert pipeline_note(config(root, pipeline="reference"), torch.device("cpu")) is None


@pytest.mark.slow
def test_two_ranks_train_on_the_same_images_as_one(root, tmp_path):
    of = (words(root, f"paths.runs={tmp_path / str(n)}", f"devices={n}", "recipe.epochs=1") for n in (1, 2))
    one, two = (compose("separate_downsampling", "nano", each) for each in of)
    train(one), train(two)
    losses = [[row["train/loss"] for row in ledger(each) if row["kind"] == "train"] for each in (one, two)]
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)

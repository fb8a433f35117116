"""`mode=predict`: the likeliest classes of images that are in no set, and the features that the last layer is given.

    python run.py mode=predict weights=RUN images=FOLDER
    python run.py +step=separate_downsampling scale=imagenet mode=predict weights=FILE images=IMAGE features=true

Images are prepared as the validation images of the run, or of the config, are.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from roadmap import data
from roadmap.config import Config
from roadmap.data import loose_images, sampling
from roadmap.distributed.device import autocast, choose_device
from roadmap.distributed.signals import StopSignal
from roadmap.errors import DataError, NonFiniteError, StoppedEarly
from roadmap.escape import FORMULA, for_csv
from roadmap.files import atomic_file, expand, fsync
from roadmap.runs.progress import ImageProgress, SweepProgress
from roadmap.text import clean, printable
from roadmap.training.device_errors import memory_errors
from roadmap.training.evaluation import eval_batch_size
from roadmap.training.output_file import predictions_files, write_errors
from roadmap.training.saved_weights import class_names, errors_of_weights, load_net, read_weights

NUM_BEST = 5  # classes named for an image


class PredictionsCsv:
    """The likeliest classes of each image: `image`, then `class_1`, `probability_1` and so on, the likeliest first."""

    def __init__(self, file: BinaryIO, classes: Sequence[str], num_best: int) -> None:
        self.classes = [for_csv(name) for name in classes]
        # Names of files are bytes: those that are no text are written as they are.
        self._text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="", write_through=True)
        self._rows = csv.writer(self._text)
        numbers = range(1, num_best + 1)
        self._rows.writerow(["image", *(f"{what}_{n}" for n in numbers for what in ("class", "probability"))])

    def write(self, name: str, best: Sequence[tuple[int, float]]) -> None:
        """Write the line of an image: numbers of classes, and their probabilities."""
        name = f"./{name}" if name.startswith(tuple(FORMULA)) else name  # the same file, and nothing to be computed
        self._rows.writerow([name, *(item for c, p in best for item in (self.classes[c], f"{p:.6f}"))])

    def close(self) -> None:
        """Leave the file, which is on disk, to whoever has opened it: features without their table would be in the
        way of another try."""
        self._text.flush()
        fsync(self._text.fileno())
        self._text.detach()


class FeaturesNpz:
    """Features by image: arrays `names (N,)` and `features (N, C)`, float32, of which any number fits."""

    def __init__(self, file: BinaryIO, features: IO[bytes]) -> None:
        """Write into a file in the end, and features meanwhile into one that is thrown away."""
        self._file, self._features = file, features
        self._names: list[str] = []

    def write(self, names: Sequence[str], features: np.ndarray) -> None:
        """Add images: features `(B, C)`."""
        self._features.write(np.ascontiguousarray(features, dtype="<f4").tobytes())
        # What is no text is shown as such.
        self._names += (name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in names)

    def close(self) -> None:
        """Write the archive; NumPy writes what lies in a file piece by piece."""
        self._features.flush()
        features = np.memmap(self._features, "<f4", "r").reshape(len(self._names), -1)
        np.savez(self._file, names=np.array(self._names), features=features)


@contextmanager
def new_predictions(
    path: Path, features: Path | None, classes: Sequence[str], num_best: int
) -> Iterator[tuple[PredictionsCsv, FeaturesNpz | None]]:
    """Open both files, which are there once all of it is whole. Raises Refused, DiskError."""
    with ExitStack() as stack:
        stack.enter_context(write_errors(path))
        table = PredictionsCsv(stack.enter_context(atomic_file(path, new=True)), classes, num_best)
        archive = None
        if features is not None:
            new = stack.enter_context(atomic_file(features, new=True))
            archive = FeaturesNpz(new, stack.enter_context(TemporaryFile(dir=features.parent)))
        yield table, archive
        table.close()
        if archive is not None:
            archive.close()


@dataclass
class Predictor:
    """A net that says of a batch which classes are the likeliest, and what its last layer was given."""

    net: nn.Module
    num_best: int
    features: Tensor | None = None  # (B, C), of the last batch

    def __post_init__(self) -> None:
        head = self.net.get_submodule("head")
        head.register_forward_pre_hook(lambda _, inputs: setattr(self, "features", inputs[0]))

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W) -> probabilities and numbers of the likeliest classes, `(B, num_best)`, and features (B, C)."""
        probabilities = self.net(images).float().softmax(1)
        best = probabilities.topk(self.num_best, 1)
        assert self.features is not None
        return best.values.cpu(), best.indices.cpu(), self.features.float().cpu()


@memory_errors()
def predict(config: Config, sweep: SweepProgress | None = None) -> str:
    """Write a line for each image, a CSV and, where asked for, features; return the line that says what was done.

    Raises ConfigError, Refused for a file that is there already, DataError for weights that do not fit, and, once all
    others are done, for images that cannot be read; NonFiniteError, DiskError, StoppedEarly.
    """
    sweep = sweep or SweepProgress()
    out, features = predictions_files(config)
    data.check_pipeline(config.data, config.recipe)
    device = choose_device(config.device)
    images = loose_images.find_loose_images(expand(str(config.images)))
    with errors_of_weights(config):
        weights = read_weights(config, sweep)
        classes = class_names(config, weights, sweep)
    net, precision = load_net(config, weights, len(classes), device)
    predictor = Predictor(net, min(NUM_BEST, len(classes)))
    for problem in images.problems:
        sweep.write(clean(problem, 500))
    with autocast(device, precision), StopSignal() as stop:
        broken, width = predict_all(config, images, predictor, classes, (out, features), stop, sweep)
    where = f"{out}" + (f" and {features} ({width} features an image)" if features else "")
    count = len(images) - broken
    done = f"{count} image{'s' * (count != 1)}, {where}"
    if problems := broken + len(images.problems):
        few = "is 1 file" if problems == 1 else f"are {problems} files"
        raise DataError(f"images={config.images}: among them {few} that cannot be read as an image; done: {done}")
    return f"{config.cell}: {done}, {weights.origin}, {precision}, {config.weights}"


def predict_all(
    config: Config,
    images: loose_images.LooseImages,
    predictor: Predictor,
    classes: Sequence[str],
    files: tuple[Path, Path | None],
    stop: StopSignal,
    sweep: SweepProgress,
) -> tuple[int, int]:
    """Write the predictions of all images; return how many of them cannot be read, and the width of the features.

    Raises DataError where none can.
    """
    device = next(predictor.net.parameters()).device
    index_batches = sampling.eval_index_batches(len(images), eval_batch_size(config.data.image_size, device))
    batches = loose_images.loose_batches(images, config.data, config.recipe, index_batches, device=device)
    progress = ImageProgress(config.cell, len(images), 0, sweep, "done")
    broken = width = 0
    try:
        with new_predictions(*files, classes, predictor.num_best) as (table, archive):
            for batch, ids, unread in stop.interruptible(batches):
                for index in unread:
                    sweep.write(loose_images.why_not_read(images.path(index)))
                broken += len(unread)
                if ids:
                    names = [images.names[index] for index in ids]
                    probabilities, numbers, features = predictor(batch)
                    width = features.shape[1]
                    for name, of_image, its_classes in zip(names, probabilities, numbers, strict=True):
                        best = list(zip(its_classes.tolist(), of_image.tolist(), strict=True))
                        require_finite(config, name, of_image)
                        table.write(name, best)
                        shown = ", ".join(f"{classes[c]} ({100 * p:.2f} %)" for c, p in best)
                        sweep.print(f"{printable(name)}: {shown}")
                    if archive is not None:
                        archive.write(names, features.numpy())
                progress.count(len(ids) + len(unread), broken)
                stop.raise_if_set()
            if broken == len(images):
                raise DataError(f"images={config.images}: none of {len(images)} can be read as an image")
    except StoppedEarly as error:
        raise StoppedEarly(f"{error}: {progress.done} of {len(images)} images done, no file is written") from None
    finally:
        progress.close()
    return broken, width


def require_finite(config: Config, name: str, probabilities: Tensor) -> None:
    """Raise NonFiniteError where the net makes nothing of an image."""
    if not bool(probabilities.isfinite().all()):
        raise NonFiniteError(f"weights={config.weights}: the net's outputs are not finite for {printable(name)}")

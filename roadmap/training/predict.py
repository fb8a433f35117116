"""`mode=predict`: the likeliest classes of images that are in no set, and the features that the last layer is given.

    python run.py mode=predict weights=RUN images=FOLDER
    python run.py +step=separate_downsampling scale=imagenet mode=predict weights=FILE images=IMAGE features=true

Images are prepared as the validation images of the run, or of the config, are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from roadmap import data
from roadmap.config import Config
from roadmap.data import loose_images, sampling
from roadmap.distributed.device import autocast, choose_device
from roadmap.distributed.signals import StopSignal
from roadmap.errors import DataError, NonFiniteError, StoppedEarly
from roadmap.files import expand
from roadmap.runs.progress import ImageProgress, SweepProgress
from roadmap.text import clean, printable
from roadmap.training.device_errors import memory_errors
from roadmap.training.evaluation import eval_batch_size
from roadmap.training.output_file import out_file, require_new
from roadmap.training.predictions import DEFAULT, new_predictions, was_killed
from roadmap.training.saved_weights import class_names, errors_of_weights, load_net, read_weights

NUM_BEST = 5  # classes named for an image


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
    out = out_file(config.out, DEFAULT, (".csv",))
    features = out.with_suffix(".npz") if config.features else None
    if features is not None and not was_killed(out):
        require_new(features)
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

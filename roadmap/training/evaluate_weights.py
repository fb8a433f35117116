"""Score weights that are there already, a published file's or a run's of ours, on the validation images of a config.

Nothing is written anywhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from roadmap import data
from roadmap.config import Config
from roadmap.config.choices import Precision
from roadmap.data import datasets, sampling
from roadmap.data.folders import label_note
from roadmap.distributed.device import autocast, choose_device
from roadmap.distributed.ranks import Ranks
from roadmap.runs.progress import ImageProgress, SweepProgress
from roadmap.runs.result import caution_note
from roadmap.training.device_errors import memory_errors
from roadmap.training.evaluation import Evaluation, collect_scores, eval_batch_size, score_batches
from roadmap.training.saved_weights import errors_of_weights, load_net, read_weights
from roadmap.training.step import Batch


@dataclass(frozen=True)
class ScoredWeights:
    """An evaluation, of what weights and in which precision."""

    result: Evaluation
    origin: str
    precision: Precision


@memory_errors()
def evaluate_weights(config: Config, sweep: SweepProgress | None = None) -> ScoredWeights:
    """Evaluate `config.weights` in the config's net on every validation image once.

    Raises ConfigError for settings that do not go together, DataError for weights that are missing, broken, unsafe or
    of another net, NonFiniteError for those with which the net's outputs are not finite.
    """
    sweep = sweep or SweepProgress()
    data.check_pipeline(config.data, config.recipe)
    device = choose_device(config.device)
    with errors_of_weights(config):
        weights = read_weights(config, sweep)
    val, classes = datasets.load_val(config.data)
    if not weights.of_run and val.files is not None and (note := label_note(classes, config.data.class_order)):
        sweep.write(note)
    net, precision = load_net(config, weights, len(classes), device)
    indices = sampling.eval_index_batches(len(val), eval_batch_size(config.data.image_size, device))
    batches = data.eval_batches(val, config.data, config.recipe, indices, device=device)
    progress = ImageProgress(config.cell, len(val), 0, sweep, "done")
    try:
        with autocast(device, precision):
            scores = score_batches(net, counted(batches, progress))
    finally:
        progress.close()
    result = collect_scores(scores, indices, len(val), Ranks()).require_finite(f"weights={config.weights}: the net")
    return ScoredWeights(result, weights.origin, precision)


def counted(batches: Iterator[Batch], progress: ImageProgress) -> Iterator[Batch]:
    """Yield batches and show how many images are done."""
    for images, labels in batches:
        yield images, labels
        progress.count(len(labels))


def result_line(config: Config, scored: ScoredWeights) -> str:
    """Return the line that a scoring ends with: step, top-1, top-5, images, whose weights, where they are."""
    result = scored.result
    return (
        f"{config.cell}: top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %{caution_note(config)}, "
        f"{int(result.correct.sum())}/{len(result.correct)} images right, "
        f"{scored.origin}, {scored.precision}, {config.weights}"
    )

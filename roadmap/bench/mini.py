"""`python -m roadmap.bench mini`: how fast the rows of regime=mini train, and how long all of them would take.

The rows are measured as by `bench net`, at the batch and the image size of scale=mini. The time of the whole study is extrapolated from the
speed of a training step: without the start of the processes, compiling, preparing images and evaluation.
"""

from collections.abc import Mapping, Sequence

from roadmap.bench.measure import Result
from roadmap.bench.net import measure_rows, net_options
from roadmap.bench.options import count
from roadmap.steps.compose import compose

FIRST_STEP = "resnet"


def main(words: Sequence[str]) -> int:
    """Measure the rows of the mini regime, and extrapolate. Returns an exit code."""
    options = net_options("mini", __doc__)
    options.add_argument(
        "--seeds", type=count, default=3, help="of each row, for the extrapolation; default: %(default)s"
    )
    options.add_argument(
        "--epochs", type=count, help="for the extrapolation; default: those of the recipe at scale=mini"
    )
    options.add_argument(
        "--images", type=count, default=60_000, help="training images of the set; default: %(default)s"
    )
    args = options.parse_args(words)
    config = compose(FIRST_STEP, "mini")
    args.regime, args.epochs = "mini", args.epochs or config.recipe.epochs
    args.batch, args.image_size = args.batch or config.recipe.batch_size, args.image_size or config.data.image_size
    for line in extrapolated(measure_rows("mini", words, args), args.seeds * args.epochs * args.images, args.seeds):
        print(line)
    return 0


def extrapolated(results: Mapping[str, Sequence[Result]], images: int, seeds: int) -> list[str]:
    """Return a line for each form of ours: the minutes that all rows take, `images` each, by the speed of their steps."""
    lines = []
    for form in dict.fromkeys(result.name for row in results.values() for result in row if result.peer is None):
        found = [result for row in results.values() for result in row if result.name == form]
        failed = [result for result in found if result.failed is not None]
        if failed:
            lines.append(
                f"{form}: {len(failed)} of {len(found)} rows could not be measured, so there is nothing to extrapolate"
            )
            continue
        minutes = sum(images / result.images_per_s for result in found) / 60
        lines.append(
            f"extrapolated, not measured: {form} would train {len(found)} rows x {seeds} seeds, {images:,} images a row in all, in "
            f"{minutes:.1f} minutes of training steps one after the other"
        )
    return lines

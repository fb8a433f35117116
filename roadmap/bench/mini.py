"""`python -m roadmap.bench mini`: how fast the rows of regime=mini train, and how long all of them would take.

The rows are measured as by `bench net`, at the batch and the image size of scale=mini. The time of the whole study is
extrapolated from that: without the start of the processes, compiling, preparing images and evaluation.
"""

from collections.abc import Mapping, Sequence

from roadmap.bench.measure import Candidate
from roadmap.bench.net import measure_rows, net_options
from roadmap.bench.options import count
from roadmap.steps.compose import compose


def main(argv: Sequence[str]) -> int:
    """Measure the rows of the mini regime, and extrapolate. Returns an exit code."""
    config = compose("resnet", "mini")
    options = net_options("mini", __doc__, batch=config.recipe.batch_size, size=config.data.image_size)
    options.set_defaults(regime="mini")
    options.add_argument("--seeds", type=count, default=3, help="of each row; default: %(default)s")
    options.add_argument("--epochs", type=count, default=config.recipe.epochs, help="default: %(default)s")
    options.add_argument("--images", type=count, default=60_000, help="of the training set; default: %(default)s")
    args = options.parse_args(argv)
    rows = measure_rows("mini", argv, args)
    for line in extrapolated(rows, args.seeds * args.epochs * args.images, args.seeds):
        print(line)
    return 0


def extrapolated(rows: Mapping[str, Sequence[Candidate]], images: int, seeds: int) -> list[str]:
    """Return a line for each form of ours: the minutes of all rows, `images` each, at their steps' speed."""
    lines = []
    ours = [candidate for row in rows.values() for candidate in row if candidate.peer is None]
    for form in dict.fromkeys(candidate.name for candidate in ours):
        found = [candidate for candidate in ours if candidate.name == form]
        if failed := [candidate for candidate in found if candidate.failed is not None]:
            lines.append(f"{form}: {len(failed)} of {len(found)} rows could not be measured: nothing to extrapolate")
            continue
        minutes = sum(images / candidate.images_per_s for candidate in found) / 60
        what = f"{form} would train {len(found)} rows x {seeds} seeds, {images:,} images a row in all"
        lines.append(f"extrapolated, not measured: {what}, in {minutes:.1f} minutes of training steps")
    return lines

"""What the classes of a net that was trained elsewhere, or before, are called."""

from roadmap import catalog
from roadmap.config import Config
from roadmap.data import datasets, folders, in_memory
from roadmap.errors import DataError
from roadmap.runs.progress import SweepProgress
from roadmap.text import clean, printable
from roadmap.training.saved_weights import Weights


def class_names(config: Config, weights: Weights, sweep: SweepProgress) -> tuple[str, ...]:
    """Return the names of the net's classes: those of the run, else those of the set, else numbers.

    Raises DataError where the set has another number of classes.
    """
    known = config.data.num_classes or catalog.find(config.data.name, config.data.kind).num_classes
    names = weights.classes or set_classes(config, weights, sweep)
    for number in (known, names and len(names)):
        if number and number != weights.num_classes:
            raise DataError(f"are for {weights.num_classes} classes, data={config.data.name} has {number}")
    return names or in_memory.class_numbers(weights.num_classes)


def set_classes(config: Config, weights: Weights, sweep: SweepProgress) -> tuple[str, ...] | None:
    """Return the names of a set's classes, None where its images, which may be elsewhere, are needed for them."""
    row = catalog.find(config.data.name, config.data.kind)
    if row.classes or not row.needs_root:
        return row.classes or None
    if not config.data.root:
        sweep.write(f"classes are named by number: data.root=FOLDER, where {row.title} is, has their names")
        return None
    try:
        found = datasets.find(config.data, ("val",), lenient=True)
    except DataError as error:
        sweep.write(clean(f"classes are named by number: {error}", 500))
        return None
    in_folders = isinstance(found, folders.Files)
    if not weights.of_run and in_folders and (note := folders.label_note(found.classes, config.data.class_order)):
        sweep.write(note)
    return tuple(map(printable, found.classes))

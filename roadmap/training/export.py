"""`mode=export`: a net for other programs, as ONNX or as torch.export's program, for any number of images at once.

    python run.py mode=export weights=RUN format=onnx
    python run.py +step=separate_downsampling scale=imagenet mode=export weights=FILE format=torch_export out=net.pt2

What was written is read back and compared with the net itself; where it computes something else it is not kept. Its
input is a batch of images, normalised; how, and what the classes are called, is in the file.
"""

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from roadmap.config import Config
from roadmap.config.choices import ExportFormat
from roadmap.distributed.signals import StopSignal
from roadmap.errors import ConfigError, ExportError, NonFiniteError
from roadmap.files import atomic_file
from roadmap.runs.progress import SweepProgress
from roadmap.text import clean
from roadmap.training.device_errors import memory_errors
from roadmap.training.output_file import exported_file, write_errors
from roadmap.training.saved_weights import build_loaded, class_names, errors_of_weights, read_weights

PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # of format=onnx
NOTES = "roadmap.json"  # the name of what is said about the net within the file
BATCHES = (1, 5)  # images at once in the comparison; the net is traced with two
TOLERANCE = 1e-4  # largest difference of a logit, as a share of the largest logit where that is above 1

Logits = Callable[[Tensor], Tensor]  # (N, 3, H, W) -> (N, num_classes)


@memory_errors()
def export(config: Config, sweep: SweepProgress | None = None) -> str:
    """Write the net of `config.weights`; return the line that says what was written.

    Raises ConfigError, also where packages are missing, Refused for a file that is there already, DataError for weights
    that do not fit, ExportError for a net that cannot be written or would compute something else, DiskError.
    """
    sweep, fmt = sweep or SweepProgress(), ExportFormat(str(config.format))
    out = exported_file(config)
    if fmt == ExportFormat.onnx and (missing := [name for name in PACKAGES if find_spec(name) is None]):
        raise ConfigError(f"format=onnx: needs {', '.join(missing)}; pip install -e '.[export]' adds what is missing")
    with errors_of_weights(config):
        weights = read_weights(config, sweep)
        classes = class_names(config, weights, sweep)
    net = build_loaded(config, weights, len(classes))
    images = [example(config, number) for number in BATCHES]
    with torch.inference_mode():
        expected = [net(batch) for batch in images]
    if not all(bool(logits.isfinite().all()) for logits in expected):
        raise NonFiniteError(f"weights={config.weights}: the net gives outputs that are not finite")
    write, read = FORMATS[fmt]
    with StopSignal() as stop, write_errors(out), atomic_file(out, new=True) as file:
        with export_errors(fmt):
            write(net, example(config, 2), notes(config, classes), file)
            file.flush()
            logits_of = read(file)
            differences = [difference(logits_of(x), y) for x, y in zip(images, expected, strict=True)]
        stop.raise_if_set()
        if not max(differences) <= TOLERANCE:
            raise ExportError(
                f"format={fmt}: what was written differs from the net by {max(differences):.2g} of its largest output, "
                f"more than {TOLERANCE:g}; nothing is kept"
            )
    shape = "x".join(map(str, images[0].shape[1:]))
    return (
        f"{config.cell}: {out}, {fmt}, any number of images {shape} -> {len(classes)} classes, "
        f"differs from the net by {max(differences):.1g}, {weights.origin}, {config.weights}"
    )


def example(config: Config, num_images: int) -> Tensor:
    """Return noise like normalised images, (N, 3, H, W), the same every time."""
    size = config.data.image_size
    return torch.randn(num_images, 3, size, size, generator=torch.Generator().manual_seed(num_images))


def difference(logits: Tensor, expected: Tensor) -> float:
    """Return the largest difference, as a share of the largest expected number where that is above 1."""
    if logits.shape != expected.shape:
        return float("inf")
    return float((logits - expected).abs().max()) / max(1.0, float(expected.abs().max()))


def notes(config: Config, classes: tuple[str, ...]) -> str:
    """Return what somebody must know who uses the net: how images are prepared, what its outputs are. JSON."""
    keys = ("image_size", "resize_size", "mean", "std")
    values = {key: getattr(config.data, key) for key in keys} | {"interpolation": config.recipe.interpolation}
    return json.dumps({"cell": config.cell, "data": config.data.name, **values, "classes": classes})


@contextmanager
def export_errors(fmt: ExportFormat) -> Iterator[None]:
    """Turn whatever an exporter comes upon into one line, and leave out what it says meanwhile."""
    silenced = io.StringIO()
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(silenced):
            yield
    except (MemoryError, OSError):
        raise
    except Exception as error:  # of torch, of onnxscript, of the runtime: each has its own
        raise ExportError(f"format={fmt}: this net cannot be written ({clean(error)})") from None


def write_torch_export(net: nn.Module, images: Tensor, about: str, file: BinaryIO) -> None:
    """Write what `torch.export.load` reads: from memory, since on a full disk torch's own writer ends the process."""
    program = torch.export.export(net, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    written = io.BytesIO()
    torch.export.save(program, written, extra_files={NOTES: about})
    file.write(written.getbuffer())


def read_torch_export(file: BinaryIO) -> Logits:
    """Return the net of a file."""
    file.seek(0)
    module: Any = torch.export.load(file).module()
    return torch.inference_mode()(module)


def write_onnx(net: nn.Module, images: Tensor, about: str, file: BinaryIO) -> None:
    """Write a model of one file: protobuf holds up to 2 GiB, six times the largest net of the paper."""
    program = torch.onnx.export(
        net, (images,), dynamo=True, verbose=False, input_names=["images"], output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    assert program is not None
    program.model.metadata_props[NOTES] = about
    file.write(program.model_proto.SerializeToString())


def read_onnx(file: BinaryIO) -> Logits:
    """Return the net of a file, as onnxruntime computes it on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file.name), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


FORMATS = {
    ExportFormat.onnx: (write_onnx, read_onnx),
    ExportFormat.torch_export: (write_torch_export, read_torch_export),
}

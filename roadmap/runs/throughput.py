"""How fast training goes, and how long it waits for data."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from roadmap.config.choices import Pipeline

T = TypeVar("T")
WAITS = 0.1  # share of the time beyond which waiting for images is worth a word


class Throughput:
    """Counts images and waiting since it was read last."""

    def __init__(self) -> None:
        self.images = 0
        self._advised = False
        self.restart()

    def restart(self) -> None:
        """Count anew from now on."""
        self.images, self._waited_s, self._since = 0, 0.0, time.monotonic()

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield batches and measure how long training waits for them."""
        source = iter(batches)
        while True:
            before = time.monotonic()
            batch = next(source, None)
            self._waited_s += time.monotonic() - before
            if batch is None:
                return
            yield batch

    def read(self) -> dict[str, float]:
        """Return images a second and the share of time spent waiting for data, and count anew."""
        seconds = max(time.monotonic() - self._since, 1e-9)
        values = {
            "train/images_per_s": round(self.images / seconds, 1),
            "train/data_wait": round(min(self._waited_s / seconds, 1.0), 4),
        }
        self.restart()
        return values

    def advice(self, pipeline: Pipeline, device_type: str, values: dict[str, float], steps: int) -> str | None:
        """Return once, of more than the first step, in which the workers start, how long a GPU waits for its images."""
        found = waiting_advice(pipeline, device_type, values) if steps > 1 and not self._advised else None
        self._advised |= found is not None
        return found


def waiting_advice(pipeline: Pipeline, device_type: str, values: dict[str, float]) -> str | None:
    """Return a line for a run on a GPU that waits long for its images, which another pipeline may shorten."""
    waits, speed = values["train/data_wait"], values["train/images_per_s"]
    if device_type != "cuda" or pipeline == Pipeline.fast or waits <= WAITS:
        return None
    without = f"{speed / (1 - waits):,.0f}" if waits < 1 else "many more"
    return (
        f"training waits for images {100 * waits:.0f} % of its time: {speed:,.0f} images/s, and {without} without; "
        "data.pipeline=fast prepares them on the GPU (in a new run)"
    )

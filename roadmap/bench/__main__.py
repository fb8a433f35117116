"""`python -m roadmap.bench NAME [OPTIONS]`: one benchmark; its module is imported only when it is asked for."""

import sys
from collections.abc import Sequence
from importlib import import_module

from roadmap.errors import DONE, ConfigError
from roadmap.text import clean, command_line

# Modules with a main(argv) -> exit code, and what each measures.
BENCHMARKS = {
    "net": "training steps of rows, beside timm and torchvision",
    "nets": "nets that compile side by side, each timed alone",
    "infer": "latency of one image, images/s of the best batch",
    "input": "images/s from JPEGs, beside timm's loader",
    "train": "the training loop beside a bare one",
    "mini": "what `make mini` would take",
    "kernels": "every form of every operation; --record keeps what won",
    "compiled": "registers, spills and instructions of the kernels, without a GPU",
    "gpu": "all of it on a GPU, in the minutes that it is given",
}


@command_line
def main(argv: Sequence[str]) -> int:
    """Run a benchmark and return its exit code; 64 for a wrong command."""
    if argv and argv[0] in ("-h", "--help"):
        print("usage: python -m roadmap.bench NAME [OPTIONS]; NAME --help has the options\n")
        print(*(f"  {name:<10}{about}" for name, about in BENCHMARKS.items()), sep="\n")
        return DONE
    if not argv or argv[0] not in BENCHMARKS:
        given = f"{clean(argv[0])}: there is no such benchmark; " if argv else ""
        raise ConfigError(f"python -m roadmap.bench: {given}allowed: {', '.join(BENCHMARKS)}; see --help")
    return int(import_module(f"roadmap.bench.{argv[0]}").main(argv[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

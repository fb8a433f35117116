"""`python -m roadmap.bench NAME [OPTIONS]`: one benchmark; its module is imported only when it is asked for."""

import sys
from collections.abc import Sequence
from importlib import import_module

from roadmap.errors import ConfigError, RoadmapError, StoppedEarly

NAMES = ("net", "input", "train", "mini", "sweep", "report")
BENCHMARKS = {name: f"roadmap.bench.{name}" for name in NAMES}  # each has main(words) -> exit code


def main(words: Sequence[str]) -> int:
    """Run a benchmark and return its exit code; 64 for a name that there is not."""
    if not words or words[0] not in BENCHMARKS:
        given = f"{words[0]}: there is no such benchmark; " if words else ""
        print(f"python -m roadmap.bench: {given}allowed: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return ConfigError.code
    try:
        return int(import_module(BENCHMARKS[words[0]]).main(words[1:]))
    except RoadmapError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.code
    except KeyboardInterrupt:
        return StoppedEarly.code
    except SystemExit as error:  # argparse's 2 for a word it does not know
        return ConfigError.code if error.code == 2 else int(error.code or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`python -m roadmap.bench NAME [OPTIONS]`: one benchmark; its module is imported only when it is asked for."""

import sys
from collections.abc import Sequence
from importlib import import_module

from roadmap.errors import ConfigError, RoadmapError, StoppedEarly
from roadmap.text import clean, redact_output

NAMES = ("net", "input", "train", "mini", "kernels", "compiled", "gpu")  # modules with a main(argv) -> exit code


def main(argv: Sequence[str]) -> int:
    """Run a benchmark and return its exit code; 64 for a wrong command."""
    redact_output()
    try:
        if not argv or argv[0] not in NAMES:
            given = f"{clean(argv[0])}: there is no such benchmark; " if argv else ""
            raise ConfigError(f"python -m roadmap.bench: {given}allowed: {', '.join(NAMES)}")
        return int(import_module(f"roadmap.bench.{argv[0]}").main(argv[1:]))
    except RoadmapError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.code
    except KeyboardInterrupt:
        return StoppedEarly.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

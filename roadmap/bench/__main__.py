"""`python -m roadmap.bench NAME [OPTIONS]`."""

import sys
from importlib import import_module

MAINS = {"sweep": "roadmap.bench.sweep"}  # each has main(words) -> exit code


def main(words: list[str]) -> int:
    """Run one benchmark; return its exit code."""
    if not words or words[0] not in MAINS:
        print(f"python -m roadmap.bench NAME, one of {', '.join(MAINS)}", file=sys.stderr)
        return 0 if {"-h", "--help"} & set(words) else 64
    return int(import_module(MAINS[words[0]]).main(words[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

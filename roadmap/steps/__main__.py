"""`python -m roadmap.steps`."""

import sys

from roadmap.text import command_line


@command_line
def main() -> int:
    """Run the command line; return the exit code."""
    from roadmap.steps.table import main  # loads torch, for which there may not be enough memory

    return main()


if __name__ == "__main__":
    sys.exit(main())

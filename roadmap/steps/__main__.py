"""`python -m roadmap.steps`."""

import sys

from roadmap.text import command_line


@command_line
def main() -> int:
    """Run the command line; return the exit code."""
    from roadmap.steps.table import main  # which loads torch, for which there may be no memory

    return main()


if __name__ == "__main__":
    sys.exit(main())

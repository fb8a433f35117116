"""`python -m roadmap.steps`."""

import sys

from roadmap.steps.table import main

if __name__ == "__main__":
    sys.exit(main())

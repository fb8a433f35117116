"""`python -m roadmap.steps`."""

import sys

from roadmap.steps.table import main

sys.exit(main())

"""`python -m roadmap.steps`."""

import sys

from roadmap.steps.table import main
from roadmap.text import redact_output

redact_output()
sys.exit(main())

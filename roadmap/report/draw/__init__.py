import logging
import os
import sys
from contextlib import suppress

# Before it is imported: where a home cannot be written, it remembers fonts for one process only, and works.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

if "matplotlib" not in sys.modules and (screen := os.environ.pop("MPLBACKEND", None)) is not None:
    import matplotlib

    os.environ["MPLBACKEND"] = screen
    with suppress(ValueError):  # an older version's, or another environment's: figures need none
        matplotlib.rcParams["backend"] = screen

"""The ResNet-to-ConvNeXt roadmap as an ablation study: one net of toggles, a YAML file a step, a directory a run."""

import os
import pwd
import signal
import sys
from importlib.util import find_spec

__version__ = "0.1.0"


def interrupted(*_: object) -> None:
    """End this process at once, as `roadmap.text.command_line` ends one that Ctrl-C came to."""
    os.write(2, b"interrupted\n")
    os._exit(75)  # StoppedEarly


# `python -m roadmap.report`, which begins with this import: the others take seconds, in which libraries make anything
# of a KeyboardInterrupt.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, interrupted)

# One of our commands, other than `bench gpu`, which brings them.
if find_spec("pydantic") is None and os.path.basename(sys.argv[0]) in {"run.py", "-m"} and sys.argv[1:2] != ["gpu"]:
    print("error: this Python lacks the packages; `make setup` installs them into .venv", file=sys.stderr)
    sys.exit(64)

try:
    pwd.getpwuid(os.getuid())
except KeyError:  # a container's user without a name: libraries that ask for it or its home raise whatever they like
    os.environ.setdefault("HOME", "/")  # as Docker does
    os.environ.setdefault("USER", str(os.getuid()))

"""The ResNet-to-ConvNeXt roadmap as an ablation study: one net of toggles, a YAML file a step, a directory a run."""

import os
import pwd
import signal
import sys

__version__ = "0.1.0"


def interrupted(*_: object) -> None:
    """End this process at once, as `roadmap.text.command_line` ends one that Ctrl-C came to."""
    os.write(2, b"interrupted\n")
    os._exit(75)  # StoppedEarly


# `python -m roadmap.report`, which begins with this import: the others take seconds, in which libraries make anything
# of a KeyboardInterrupt.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, interrupted)

try:
    pwd.getpwuid(os.getuid())
except KeyError:  # a container's user without a name: libraries that ask for it or its home raise whatever they like
    os.environ.setdefault("HOME", "/")  # as Docker does
    os.environ.setdefault("USER", str(os.getuid()))

"""The ResNet-to-ConvNeXt roadmap as an ablation study: one net of toggles, a YAML file a step, a directory a run."""

import os
import pwd

__version__ = "0.1.0"

try:
    pwd.getpwuid(os.getuid())
except KeyError:  # a container's user without a name: libraries that ask for it or its home raise whatever they like
    os.environ.setdefault("HOME", "/")  # as Docker does
    os.environ.setdefault("USER", str(os.getuid()))

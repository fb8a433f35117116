"""The ResNet-to-ConvNeXt roadmap as an ablation study: one net made of toggles, one YAML file a step, one directory a run."""

__version__ = "0.1.0"

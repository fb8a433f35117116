"""The ResNet-to-ConvNeXt roadmap as an ablation study: one net of toggles, a YAML file a step, a directory a run."""

__version__ = "0.1.0"

"""The schema of a run: what each key means, what it may be, and what it affects."""

from roadmap.config.fields import Affects
from roadmap.config.schema import KEYS, Config, defaults, is_read

__all__ = ["KEYS", "Affects", "Config", "defaults", "is_read"]

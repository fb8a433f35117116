"""What a user can get wrong, with the exit code each error ends the process with. Used by every room; imports nothing."""

DONE = 0


class RoadmapError(Exception):
    """An error that ends the process with `code` and one or two plain lines, never a traceback."""

    code = 1


class ConfigError(RoadmapError, ValueError):
    """A command or a config that cannot be run: names the key, its value and what is allowed."""

    code = 64


class DataError(RoadmapError):
    """Images, labels, weights or run directories that are missing, broken or do not fit."""

    code = 65


class NonFiniteError(RoadmapError):
    """The loss or a gradient was not finite; names the step in which it happened."""

    code = 70


class DiskError(RoadmapError):
    """The run directory cannot be written: full, unreadable or not ours."""

    code = 74


class StoppedEarly(RoadmapError):
    """A signal stopped the run, after it was saved: the same command goes on."""

    code = 75


class Busy(RoadmapError):
    """Another process is writing the run."""

    code = 75


class Refused(RoadmapError):
    """The run directory belongs to another config, code or data set, or is not safe to load."""

    code = 78

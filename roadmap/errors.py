"""What a user can get wrong, with the exit code that each error ends the process with."""

import errno

DONE = 0
REFUSED = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EROFS)


class RoadmapError(Exception):
    """An error that ends the process with `code` and one or two plain lines, never a traceback."""

    code = 1
    # Whether every rank of the run raises it in the same place, so that the ranks can go on to another run.
    on_all_ranks = False


class ConfigError(RoadmapError, ValueError):
    """A command or a config that cannot be run: names the key, its value and what is allowed."""

    code = 64


class OutOfMemory(ConfigError):
    """Memory is too small for a run, the device's or this machine's: alone, or beside others."""


class CompilerError(ConfigError):
    """Torch's compiler fails on a net."""


class DataError(RoadmapError):
    """Images, labels, weights or run directories that are missing, broken or do not fit."""

    code = 65


class NonFiniteError(RoadmapError):
    """The loss, a gradient, an evaluation or what a checkpoint would hold was not finite; names the step."""

    code = 70
    on_all_ranks = True


class ExportError(RoadmapError):
    """A net cannot be written in a format, or computes something else there."""

    code = 70


class DiskError(RoadmapError):
    """The run directory cannot be written: full, unreadable or not ours."""

    code = 74


class StoppedEarly(RoadmapError):
    """A signal stopped the run, after it was saved: run the same command again to continue."""

    code = 75
    on_all_ranks = True


class PeerLost(RoadmapError):
    """Another rank of the run has died, is silent or never came; run the same command again to continue."""

    code = 75


class LoaderError(RoadmapError):
    """Images did not come: a process that prepares them died or lacks memory, or a read stalls; the run may go on."""

    code = 75


class Busy(RoadmapError):
    """Another process is writing the run."""

    code = 75


class Refused(RoadmapError):
    """The run directory belongs to another config, code or data set, or is not safe to load."""

    code = 78


class NoProgress(RoadmapError):
    """The run died several times in a row without a new checkpoint: restarting it is of no use."""

    code = 93


def error_of(kind: str, text: str) -> RoadmapError:
    """Return the error of a class by its name: how one rank raises what another one told it."""
    kinds = RoadmapError.__subclasses__()
    known = {cls.__name__: cls for cls in [*kinds, *(inner for cls in kinds for inner in cls.__subclasses__())]}
    return known.get(kind, RoadmapError)(text)


def is_refused(error: BaseException) -> bool:
    """Tell whether the system refuses a path as such; that nothing is there may be a fault of ours."""
    return isinstance(error, OSError) and error.filename is not None and error.errno in REFUSED


def exit_code(error: BaseException | None) -> int:
    """Return the exit code of a run that an error ended."""
    if error is None:
        return 0
    if isinstance(error, KeyboardInterrupt):
        return StoppedEarly.code
    if is_refused(error):
        return DiskError.code
    return error.code if isinstance(error, RoadmapError) else 1

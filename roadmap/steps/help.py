"""`python run.py --help`: what there is to choose from, one line each, from the first comment of every config file;
and what the keys are, from the schema."""

import textwrap
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from roadmap.config import KEYS
from roadmap.config.fields import Key, shown
from roadmap.config.schema import DERIVED
from roadmap.errors import ConfigError
from roadmap.steps.tree import ADDED, CONF, GROUPS, about, regimes, step_tree
from roadmap.text import nearest, plain_table, shorten

HEAD = """\
Train one step of the ResNet-to-ConvNeXt roadmap.

  python run.py +step=inverted_bottleneck                 train one step on digits, on a laptop
  python run.py +step=gelu model.kernel_size=9 seed=1     change any key
  python run.py +step=gelu scale=imagenet data.root=FOLDER     train on ImageNet as in the paper
  python run.py +step=gelu mode=evaluate weights=FILE     evaluate weights; for a run: weights=RUN
  python run.py mode=predict weights=RUN images=FOLDER    classify images (mode=export writes ONNX)
  python run.py -cd MYFOLDER +step=mine                   your own step, MYFOLDER/step/mine.yaml
  python run.py -cd sweeps -cn demo                       all rows, one after the other
"""

TAIL = """\
Keys: model.* (the toggles) recipe.* data.* regime.* paths.runs wandb.* checkpoint.* seed study
      device mode weights dry fresh allow_drift.   dry=true prints every key without running.
Exit codes: 0 done, 64 wrong command or config, 65 wrong data, 70 loss not finite, 74 disk error,
      75 stopped (the same command continues), 78 the directory has another run, 93 no progress.
More: python run.py --help step (or another group, or all) explains each choice, --help recipe (or
      another section, or a key) the keys.   make lists all commands.   docs/
      python -m roadmap.sweep --help (studies), also roadmap.report, .steps, .bench.
      eval "$(python run.py -sc install=bash)" turns on completion by the TAB key."""
WIDTH = 100


def short_help() -> str:
    """Return the help for an empty command line."""
    return HEAD + "\npython run.py --help lists all steps, regimes, scales, data sets, variants and keys."


def config_dirs(options: Sequence[str]) -> list[Path]:
    """Return the config folders among the options of a command line, as `check_options` returns them, and ours."""
    named = [Path(value) for option, value in pairwise(options) if option in ("-cd", "--config-dir")]
    return [*reversed(named), CONF]


def help_text(folders: Sequence[Path], words: Sequence[str] = ()) -> str:
    """Return the help with the contents of the config folders, on one screen; for words that are groups (`all` for
    every group), sections or keys a line for each of their choices and keys. Raises ConfigError for another word."""
    words = [word for word in words if "=" not in word]
    keys = {name: key for name, key in KEYS.items() if name not in DERIVED}
    known = dict.fromkeys([*GROUPS, "all", *(name.split(".")[0] for name in keys if "." in name), *keys])
    if wrong := [word for word in words if word not in known]:
        hint = nearest(wrong[0][:80], known, 12)
        raise ConfigError(f"--help {shorten(wrong[0], 80)}: there is no such group, section or key; {hint}")
    parts = [] if words else [HEAD, "\n".join(_names(group, folders) for group in GROUPS) + "\n", TAIL]
    for group in (group for group in GROUPS if {group, "all"} & set(words)):
        found = choices(group, folders)
        width = max(len(name) for name in found)
        lines = (f"  {_prefix(group)}{name:<{width}}  {line}" for name, line in found.items())
        parts.append(f"{GROUPS[group]}:\n" + "\n".join(lines) + "\n")
    if rows := [_key(name, key) for name, key in keys.items() if {name, name.split(".")[0]} & set(words)]:
        head = "Keys, each with its default where no file of conf/ sets it (dry=true prints a run's own values):"
        parts.append(head + "\n" + textwrap.indent(plain_table(rows), "  ") + "\n")
    return "\n".join(parts).rstrip("\n")


def _key(name: str, key: Key) -> tuple[str, str, str]:
    """Return a key's name, its default, and in words what is allowed and what it means."""
    kind = "true or false" if isinstance(key.default, bool) else "text" if key.is_text else ""
    needs = f"only with {'='.join(key.needs)}" if key.needs else ""
    return name, shown(key.default), "; ".join(filter(None, (key.allowed or kind, key.about, needs)))


def _prefix(group: str) -> str:
    return f"{'+' * (group in ADDED)}{group}="


def _names(group: str, folders: Sequence[Path]) -> str:
    return textwrap.fill(
        " ".join(choices(group, folders)), WIDTH, initial_indent=f"{_prefix(group):<11}", subsequent_indent=" " * 11,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def choices(group: str, folders: Sequence[Path]) -> dict[str, str]:
    """Return the files of a group with their first line, in the order of the roadmap for steps, of size for regimes."""
    if group == "step":
        return {name: step.about for name, step in step_tree(folders).items()}
    found = {path.stem: about(path) for folder in folders for path in sorted((folder / group).glob("[!.]*.yaml"))}
    return {name: found[name] for name in regimes(folders)} if group == "regime" else found

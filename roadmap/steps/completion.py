"""Completion in bash, `eval "$(python run.py -sc install=bash)"`: Hydra's own script and search, and nothing else.

Bash expands the words that it is offered, also `$(...)`. So only words made of the characters of names are offered,
whoever named a file or wrote a value.
"""

import os
import re
from collections.abc import Sequence
from itertools import pairwise

from hydra._internal.core_plugins.bash_completion import BashCompletion
from hydra.core.global_hydra import GlobalHydra

from roadmap.config import KEYS
from roadmap.errors import ConfigError
from roadmap.steps.compose import accept_lazy_help, bounded_time, hydra_initialized
from roadmap.steps.config_files import check_config_dirs
from roadmap.steps.help import config_dirs
from roadmap.steps.hydra_guard import MAX_WORDS, check_options, check_overrides
from roadmap.steps.tree import ADDED, CONF, GROUPS

OPTIONS = ("-sc", "--shell-completion")
VERBS = ("install=bash", "uninstall=bash", "query=bash")
OFFERED = re.compile(r"[+~]?[A-Za-z0-9_./=,:@%-]{1,200}")
HEADS = {*GROUPS, *(name.split(".")[0] for name in KEYS)} - {*ADDED}


def complete(words: Sequence[str]) -> None:
    """Do what bash, or whoever installs the completion, asks for. Raises ConfigError for anything else."""
    if len(words) != 1 or words[0] not in VERBS:
        script = 'eval "$(python run.py -sc install=bash)"'
        raise ConfigError(f"-sc: takes one of {', '.join(VERBS)}; {script} installs it")
    if words[0] == "query=bash":
        print(" ".join(choices(os.environ.get("COMP_LINE", ""))))
    else:
        plugin = BashCompletion(None)  # type: ignore[arg-type]  # these two read no config
        plugin.install() if words[0] == "install=bash" else plugin.uninstall()


def choices(line: str) -> list[str]:
    """Return completions of the last word of a command line; none if the words before it are wrong."""
    try:
        return [word for word in _found(line) if OFFERED.fullmatch(word) and _may_be_typed(word)]
    except Exception:  # errors are reported when the line is run, not while it is typed
        return []


def _found(line: str) -> list[str]:
    line = BashCompletion.strip_python_or_app_name(line[:MAX_WORDS])
    begun = "" if line.endswith(" ") else line.split()[-1] if line.split() else ""
    options, overrides = check_options(line.split()[: -1 if begun else None])
    folders = config_dirs(options)
    check_overrides([*overrides, begun.partition("=")[0]], folders)
    check_config_dirs(folders, CONF)
    names = [value for option, value in pairwise(options) if option in ("-cn", "--config-name")]
    accept_lazy_help()
    with hydra_initialized(folders[0]), bounded_time():
        plugin = BashCompletion(GlobalHydra.instance().config_loader())
        return plugin._query(config_name=(names or ["config"])[-1], line=" ".join([*overrides, begun]))


def _may_be_typed(word: str) -> bool:
    head = re.split("[=./]", word.lstrip("+~"))[0]
    return head in ADDED if word.startswith("+") else head in HEADS

"""What is refused on a command line, since Hydra would act on it before our schema sees it.

Hydra makes its launcher, sweeper, logging and callbacks from whatever `hydra.*` names; only its mode and a sweep's
lists may be set. Its parser has no limits, so words that are too long, nested too deeply or endless are refused first.
"""

import math
import re
from collections.abc import Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, QuotedString, RangeSweep
from hydra.errors import HydraException

from roadmap.config import KEYS
from roadmap.errors import ConfigError
from roadmap.files import nearby
from roadmap.steps.hydra_errors import HYDRA_RESOLVERS, quote
from roadmap.steps.tree import GROUPS
from roadmap.text import SAFE_NAME, clean, nearest, shorten

# Hydra's own options that may be typed, spelled in full, and whether a value follows. argparse would take
# abbreviations of all of them: one unpickles a file (--experimental-rerun). Not --config-path: what it names takes the
# place of conf/.
OPTIONS = {
    "--help": False, "-h": False, "--version": False, "--multirun": False, "-m": False, "--resolve": False,
    "--config-dir": True, "-cd": True, "--config-name": True, "-cn": True,
    "--cfg": True, "-c": True, "--package": True, "-p": True, "--info": True, "-i": True,
}  # fmt: skip

# Characters of a word, of one with brackets (whose parsing takes quadratic time), and of all words: Hydra's parser
# reads some ten thousand a second. A list of 1000 seeds fits.
MAX_WORD, MAX_BRACKETS, MAX_WORDS = 4000, 1000, 8000
MAX_DEPTH = 10  # of brackets within each other
MAX_REFERENCES = 4  # `${...}` in one value, and values of a file with several: each may double what it stands for
CLOCK = re.compile(rf"\$\{{\s*({'|'.join(HYDRA_RESOLVERS)})\s*:")
MAX_RUNS = 10_000  # of one sweep: Hydra makes them all before the first one starts
SETTABLE = "of Hydra's own settings only hydra.mode and hydra.sweeper.params may be set"


def check_options(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the options with their values, and all other words.

    Raises ConfigError for an option that is none of `OPTIONS`, or is abbreviated.
    """
    words, options, others = iter(argv), list[str](), list[str]()
    for word in words:
        option, equals, value = word.partition("=")
        if not word.startswith("-"):
            others.append(word)
            continue
        if option not in OPTIONS or (equals and not OPTIONS[option]):
            hint = f"a key is set as NAME=VALUE; {nearest(option[:80], OPTIONS)}"
            raise ConfigError(f"{shorten(word, 80)}: there is no such option; {hint}")
        options.append(option)
        if not OPTIONS[option]:
            continue
        value = value if equals else next(words, "")
        options.append(value)
        if value.startswith("-") or not value:
            raise ConfigError(f"{option}: a value must follow")
        if option in ("--config-name", "-cn") and not all(map(SAFE_NAME.fullmatch, value.split("/"))):
            raise ConfigError(f"{option} {shorten(value, 80)}: is not a config's name; its folder goes with -cd FOLDER")
        if option in ("--config-dir", "-cd") and not Path(value).is_dir():
            raise ConfigError(f"{option} {shorten(value, 80)}: no such folder{nearby(Path(value))}")
    return options, others


def check_overrides(words: Sequence[str], folders: Sequence[Path] = ()) -> None:
    """Raise ConfigError for a word of a command line that Hydra must not see; those that it cannot parse are left to
    it. Subfolders of `folders` are groups, too."""
    if (length := sum(map(len, words))) > MAX_WORDS:
        raise ConfigError(f"{shorten(max(words, key=len), 80)}: {length} characters in all, at most {MAX_WORDS}")
    numbers = [_check_override(word, folders) for word in words if not word.startswith("-")]
    if math.prod(numbers) > MAX_RUNS:
        raise ConfigError(f"{shorten(' '.join(words), 120)}: more than {MAX_RUNS} runs at once")


def _check_override(word: str, folders: Sequence[Path]) -> int:
    """Check `KEY=VALUE`; return how many values it lists. Raises ConfigError."""
    _check_length(word)
    if "=" not in word:
        return 1
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        return 1
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise ConfigError(f"{shorten(word, 80)}: cannot be read as KEY=VALUE ({clean(error, 80)})") from None
    key, value = override.get_key_element().lstrip("+~"), override.value()
    if re.split("[./@]", key)[0] == "hydra":
        _check_setting(key, value, folders)
    elif "@" in key or key == "local":
        raise ConfigError(f"{shorten(key, 80)}: a group goes where its file says; write GROUP=NAME")
    elif key in GROUPS or "/" in key or any((folder / key).is_dir() for folder in folders):
        _check_choice(key, override, word.partition("=")[2])
    elif KEYS.get(key) and KEYS[key].is_text and isinstance(value, list | dict):
        text = f"{key}={quote(word.partition('=')[2])}"
        raise ConfigError(f'{word}: brackets and braces are a list or a mapping; as text: "{text}"')
    return _num_values(word, value)


def _check_length(word: str) -> None:
    deepest = max(accumulate(((char in "[{(") - (char in ")}]") for char in word[:MAX_WORD]), initial=0))
    limit = MAX_BRACKETS if deepest else MAX_WORD
    if len(word) > limit:
        raise ConfigError(f"{shorten(word, 80)}: has {len(word)} characters, at most {limit}")
    if word.count("${") > MAX_REFERENCES:
        raise ConfigError(f"{shorten(word, 80)}: refers to more than {MAX_REFERENCES} keys")
    if deepest > MAX_DEPTH:
        raise ConfigError(f"{shorten(word, 80)}: brackets more than {MAX_DEPTH} deep")


def _check_setting(key: str, value: Any, folders: Sequence[Path]) -> None:
    if not may_be_set(key):
        raise ConfigError(f"{shorten(key, 80)}: {SETTABLE}")
    if key.startswith("hydra.sweeper.params"):
        inner = key.removeprefix("hydra.sweeper.params").lstrip(".")
        check_params(value if isinstance(value, dict) else {inner: value}, folders)


def check_params(params: dict[Any, Any], folders: Sequence[Path]) -> None:
    """Raise ConfigError for a sweep's list that would not be allowed on a command line."""
    for key, value in params.items():
        if not re.fullmatch(r"\+{0,2}[\w.]+", str(key)):
            raise ConfigError(f"hydra.sweeper.params.{shorten(str(key), 80)}: is not a key of a run")
        if found := CLOCK.search(str(value)):
            raise ConfigError(f"{shorten(str(key), 80)}: refers to `{found[1]}:`; no run depends on the clock or a job")
    # Other types of values are reported by the code that reads the file.
    check_overrides([f"{key}={value}" for key, value in params.items() if isinstance(value, str)], folders)


def _check_choice(key: str, override: Override, given: str) -> None:
    """Raise ConfigError for a choice that is not a name: Hydra would open any file that a path leads to."""
    value = override.value()
    if isinstance(value, Glob):
        return
    choices: list[Any] = list(value.list) if isinstance(value, ChoiceSweep) else [value]
    if key == "variant":  # the only group of which several may be chosen at once
        choices = [one for each in choices for one in (each if isinstance(each, list) and len(each) > 1 else [each])]
    for choice in choices:
        name = choice.text if isinstance(choice, QuotedString) else choice
        if not isinstance(name, str) or not SAFE_NAME.fullmatch(name):
            raise ConfigError(f"{shorten(key, 80)}={shorten(given, 80)}: takes one name, of A-Z a-z 0-9 _ . -")


def _num_values(word: str, value: Any) -> int:
    if isinstance(value, ChoiceSweep):
        return max(1, len(value.list))
    if isinstance(value, IntervalSweep):
        raise ConfigError(f"{shorten(word, 80)}: names no values; a list does, or range(FIRST,END,STEP)")
    if not isinstance(value, RangeSweep):
        return 1
    try:
        number = sum(1 for _ in islice(value.range(), MAX_RUNS + 1))
    except (HydraException, ValueError, ArithmeticError) as error:
        raise ConfigError(f"{shorten(word, 80)}: cannot be counted ({clean(error, 80)})") from None
    if not number:
        raise ConfigError(f"{shorten(word, 80)}: names no values; range(FIRST,END,STEP) ends before END")
    return number


def may_be_set(key: str) -> bool:
    return key == "hydra.mode" or key == "hydra.sweeper.params" or key.startswith("hydra.sweeper.params.")

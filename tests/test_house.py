"""The house: which room may import what, what stays free of torch and of Hydra, and the size and names of modules.

Each rule is a function of a house, which is read from a folder, so that every rule is tried on a small one of its own.
"""

import ast
import graphlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .conftest import ROOT
from .drive import python

# From the top down: a room imports only from floors below its own, and on the lowest floor from any other.
FLOORS = (
    {"bench", "run"},
    {"sweep"},
    {"training"},
    {"report", "data"},
    {"steps"},
    {"runs"},
    {"net", "distributed"},
    {"roadmap", "config", "catalog", "paper", "files", "parsing", "text", "escape", "errors"},
)
HYDRA = ("hydra", "omegaconf")
WITH_HYDRA = {"run", "roadmap.sweep.study"}  # besides the room `steps`: what reads studies
TORCH = ("torch", "torchvision", "timm", "safetensors.torch")
TORCH_FREE = {
    "run", "roadmap", "config", "catalog", "paper", "files", "text", "escape", "errors", "steps", "sweep", "report",
}  # fmt: skip
WITH_TORCH = {  # modules of these rooms that need the nets
    "roadmap.steps.table": "costs every row",
    "roadmap.steps.__main__": "prints that table",
    "roadmap.steps.dry_run": "costs the net of a run",
    "roadmap.report.compare": "describes the nets of two runs",
    "roadmap.sweep.plan": "costs every cell",
    "roadmap.sweep.prune": "reads a checkpoint back",
}
LAZY = {  # imports within functions that `--help`, submit, status, reconcile, cancel and the report do not call
    ("run", "torch"): "mode=train, after the config was checked",
    ("run", "roadmap.training"): "mode=train and mode=evaluate, after the config was checked",
    ("run", "roadmap.data"): "mode=data_check",
    ("run", "roadmap.steps.dry_run"): "dry=true",
    ("roadmap.steps.command_line", "roadmap.net.library_weights"): "weights=timm:NAME: which are its default",
    ("roadmap.runs.provenance", "torch"): "a run asks for its hardware",
    ("roadmap.sweep.__main__", "roadmap.sweep.plan"): "the verb plan",
    ("roadmap.sweep.__main__", "roadmap.sweep.prune"): "the verb prune",
}
PRIVATE_WORD = re.compile(
    "place|meet|together|from_main|bystander|mirror|adopt|kept|worked|pictures|standing|contestants?|judge|look|words|"
    "say|tell|take_up|facts|held|idle"
)
LINES = 320  # ruff has an eye on the columns


@dataclass(frozen=True)
class Import:
    """One import: of a module of the house by its whole name, or of somebody else's."""

    target: str
    line: int
    where: str  # module, function or typing

    def is_of(self, *packages: str) -> bool:
        return any(self.target == package or self.target.startswith(package + ".") for package in packages)


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    lines: list[str]
    tree: ast.Module
    imports: list[Import]

    @property
    def room(self) -> str:
        return [*self.name.split("."), self.name][1]


House = dict[str, Module]


def read_house(root: Path) -> House:
    """Read `run.py` and the package below a folder."""
    paths = sorted([*root.glob("run.py"), *root.glob("roadmap/**/*.py")])
    names = {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    house = {}
    for name, path in names.items():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        imports = list(imports_of(tree, names.keys(), name if path.stem == "__init__" else name.rpartition(".")[0]))
        house[name] = Module(name, path.relative_to(root), text.splitlines(), tree, imports)
    return house


def imports_of(node: ast.AST, names, package: str, where: str = "module") -> Iterator[Import]:
    """Yield the imports below a node; those of an `if TYPE_CHECKING` are marked as such."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, where) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - child.level + 1] if child.level else []
            source = ".".join([*parents, *([child.module] if child.module else [])])
            for whole in (f"{source}.{alias.name}" for alias in child.names):
                yield Import(whole if whole in names else source, child.lineno, where)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from imports_of(ast.Module(child.body, []), names, package, "typing")
            yield from imports_of(ast.Module(child.orelse, []), names, package, where)
        else:
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports_of(child, names, package, "function" if is_function and where == "module" else where)


def floor(room: str) -> int:
    return next((number for number, rooms in enumerate(FLOORS) if room in rooms), -1)


def upward_imports(house: House) -> Iterator[str]:
    for module in house.values():
        if floor(module.room) < 0:
            yield f"{module.path}: the room {module.room} is on no floor"
        for each in module.imports:
            if each.target in house and (target := house[each.target].room) != module.room:
                lowest = floor(target) == floor(module.room) == len(FLOORS) - 1
                if floor(target) <= floor(module.room) and not lowest:
                    yield f"{module.path}:{each.line}: {module.room} imports {each.target} from no lower floor"


def circles(house: House) -> Iterator[str]:
    """An import within a function counts too: nothing is imported late to hide a circle."""
    graph = {name: {each.target for each in m.imports if each.where != "typing"} for name, m in house.items()}
    try:
        graphlib.TopologicalSorter({name: targets & house.keys() for name, targets in graph.items()}).prepare()
    except graphlib.CycleError as error:
        yield f"a circle of imports: {' <- '.join(error.args[1])}"


def hydra_elsewhere(house: House) -> Iterator[str]:
    for module in house.values():
        for each in module.imports:
            if each.is_of(*HYDRA) and module.room != "steps" and module.name not in WITH_HYDRA:
                yield f"{module.path}:{each.line}: imports {each.target}, as only readers of configs do"
            if each.is_of("wandb") and module.room == "net":
                yield f"{module.path}:{each.line}: imports {each.target}: a net logs nothing"


def torch_reached(house: House) -> Iterator[str]:
    """Yield the way to torch from each module that must do without, over all imports but the named late ones."""
    for name, module in house.items():
        if module.room in TORCH_FREE and name not in WITH_TORCH and (way := way_to_torch(house, name)):
            yield f"{module.path} reaches torch: {' -> '.join(way)}"


def way_to_torch(house: House, start: str) -> list[str] | None:
    ways, seen = [[start]], {start}
    while ways:
        way = ways.pop(0)
        for target in reached_from(house, way[-1]):
            if target not in house:
                return [*way, target]
            if target not in seen:
                seen.add(target)
                ways.append([*way, target])
    return None


def reached_from(house: House, name: str) -> Iterator[str]:
    """Yield torch and the modules of the house that a module's imports execute: packages before their modules."""
    for each in house[name].imports:
        late = each.where == "function" and any(name == source and each.is_of(target) for source, target in LAZY)
        if late or each.where == "typing":
            continue
        if each.is_of(*TORCH):
            yield each.target
        parts = each.target.split(".")
        yield from (".".join(parts[:n]) for n in range(1, len(parts) + 1) if ".".join(parts[:n]) in house)


def needless_exceptions(house: House) -> Iterator[str]:
    """An exception that excuses nothing is one that nobody took back."""
    for name in {*WITH_TORCH, *WITH_HYDRA, *(source for source, _ in LAZY)} - house.keys():
        yield f"{name}: there is no such module to except"
    for name in WITH_TORCH.keys() & house.keys():
        if not way_to_torch(house, name):
            yield f"{name}: reaches no torch and needs no exception"
    for source, target in LAZY:
        late = [each for each in house[source].imports if each.where == "function"] if source in house else []
        if source in house and not any(each.is_of(target) for each in late):
            yield f"{source}: no function imports {target}"


def too_large(house: House) -> Iterator[str]:
    for module in house.values():
        if len(module.lines) > LINES:
            yield f"{module.path}: {len(module.lines)} lines, more than {LINES}"


def names_twice(house: House) -> Iterator[str]:
    """A module of bench is named for what it measures, which is its command's name; a schema is its room's."""
    named = (m.path.stem for m in house.values() if m.room not in ("bench", "run"))
    stems = Counter(stem for stem in named if not stem.startswith("__") and stem != "schema")
    yield from (f"{stem}.py: {count} modules have this name" for stem, count in stems.items() if count > 1)
    checking = [m for m in house.values() for x in m.tree.body if isinstance(x, ast.FunctionDef) and x.name == "check"]
    if len(checking) > 1:
        yield f"check: a function of {', '.join(str(m.path) for m in checking)}; checks what?"


def private_words(house: House) -> Iterator[str]:
    for module in house.values():
        if PRIVATE_WORD.fullmatch(module.path.stem):
            yield f"{module.path}: the module's name is a private word"
        for node in ast.walk(module.tree):
            named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if named and PRIVATE_WORD.fullmatch(node.name.strip("_").lower()):
                yield f"{module.path}:{node.lineno}: {node.name} is a private word"


RULES = (
    upward_imports, circles, hydra_elsewhere, torch_reached, needless_exceptions, too_large, names_twice,
    private_words,
)  # fmt: skip


@pytest.fixture(scope="module")
def house() -> House:
    return read_house(ROOT)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_its_rules(house, rule):
    assert not (broken := list(rule(house))), "\n" + "\n".join(broken)


LONG = "x = 1\n" * LINES  # and one more by `build`
BROKEN = [
    (upward_imports, {"net/a": "import roadmap.training.b", "training/b": ""}, "net imports roadmap.training.b"),
    (upward_imports, {"data/a": "def f():\n    from roadmap.report import b", "report/b": ""}, "a.py:2: data imports"),
    (upward_imports, {"net/a": "if TYPE_CHECKING:\n    from roadmap.steps import b", "steps/b": ""}, "net imports"),
    (upward_imports, {"net/a": "from ..steps import b", "steps/b": ""}, "net imports roadmap.steps.b"),
    (upward_imports, {"attic/a": ""}, "attic is on no floor"),
    (circles, {"net/a": "from .b import x", "net/b": "import roadmap.net.a"}, "roadmap.net.b"),
    (circles, {"net/a": "def f():\n    from roadmap.net import b", "net/b": "from roadmap.net.a import f"}, "circle"),
    (hydra_elsewhere, {"sweep/a": "from omegaconf import DictConfig"}, "imports omegaconf"),
    (hydra_elsewhere, {"net/a": "def f():\n    import hydra.core.plugins"}, "imports hydra"),
    (hydra_elsewhere, {"net/a": "import wandb"}, "imports wandb"),
    (torch_reached, {"report/a": "def f():\n    import torchvision"}, "roadmap.report.a -> torchvision"),
    (
        torch_reached,
        {"report/a": "from roadmap.runs import b", "runs/b": "import torch.nn"},
        "runs.b -> torch.nn",
    ),
    (torch_reached, {"errors": "from roadmap.net.b import x", "net/__init__": "import timm", "net/b": ""}, "-> timm"),
    (torch_reached, {"runs/provenance": "import torch", "files": "import roadmap.runs.provenance"}, "-> torch"),
    (needless_exceptions, {"sweep/plan": "import json"}, "roadmap.sweep.plan: reaches no torch"),
    (needless_exceptions, {"runs/provenance": "import torch"}, "roadmap.runs.provenance: no function imports torch"),
    (too_large, {"net/a": LONG}, "a.py: 321 lines"),
    (names_twice, {"net/folder": "", "data/folder": ""}, "folder.py: 2 modules"),
    (names_twice, {"net/a": "def check():\n    pass", "data/b": "def check():\n    pass"}, "check: a function of"),
    (private_words, {"net/words": ""}, "words.py: the module's name"),
    (private_words, {"net/a": "class Bystander:\n    def _say(self):\n        pass"}, "Bystander is a private word"),
]


def build(folder: Path, files: dict[str, str]) -> House:
    for name, text in files.items():
        path = folder / "roadmap" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return read_house(folder)


@pytest.mark.parametrize(("rule", "files", "expected"), BROKEN)
def test_each_rule_finds_what_it_forbids(tmp_path, rule, files, expected):
    assert expected in "\n".join(rule(build(tmp_path, files)))


def test_what_is_allowed_is_left_alone(tmp_path):
    house = build(tmp_path, {
        "errors": "from roadmap.text import join", "text": "", "runs/record": "import json",
        "runs/provenance": "if TYPE_CHECKING:\n    import torch\ndef hardware():\n    import torch",
        "report/read": "from roadmap.runs.provenance import hardware\nfrom roadmap.runs import record",
        "steps/compose": "from hydra import compose\nfrom roadmap.errors import ConfigError",
        "training/train": "import torch\nfrom roadmap.steps.compose import compose\ndef check(): pass",
        "bench/train": "from roadmap.training import train",
    })  # fmt: skip
    assert [line for rule in RULES if rule is not needless_exceptions for line in rule(house)] == []


IN_ONE_PROCESS = """
import json, runpy, sys
ended = []
for module, *sys.argv[1:] in json.loads(sys.argv[1]):
    try:
        if module.endswith(".py"):
            runpy.run_path(module, run_name="__main__")
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        ended.append([module, sys.argv[1], error.code or 0, "torch" in sys.modules])
print(json.dumps(ended))
"""


def test_commands_that_compute_nothing_load_no_torch():
    """The verbs of a study are among the tests of its submission."""
    commands = [[module, "--help"] for module in ("run.py", "roadmap.report", "roadmap.runs", "roadmap.runs.pack")]
    done = python("-c", IN_ONE_PROCESS, json.dumps(commands), check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [[*command[:2], 0, False] for command in commands], done.stderr

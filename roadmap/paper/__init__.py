"""The paper's printed numbers (Tables 10 and 11) and the names of the steps, as data."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

TABLES = {"tiny": "table10_resnet50.csv", "base": "table11_resnet200.csv"}

# Printed figures that the counting rule cannot reach; everything else agrees to the printed digit.
SLIPS = {
    ("tiny", "layer_norm"): "slip in Table 10: a change of norm adds no multiply-accumulates (Table 11 keeps 14.81)",
    ("tiny", "separate_downsampling"): "slip in Table 10: ConvNeXt-T is 4.46, as in the paper's Table 1",
    ("tiny", "swin"): "torchvision's Swin-T counts 4.49",
}

DATA, IMAGE_SIZE = "imagenet", 224  # of the printed numbers
BEYOND = "not of the paper"  # a row beyond the paper's: of another paper, or the user's own

# The one cell of ours beside which the printed Swins may stand: under Swin's own recipe.
SWIN_CELL = "swin,recipe=swin"

# Rows whose printed number, or whose net, has no published recipe; by regime and step.
RECIPES = {
    ("base", "resnet"): "ResNet-200's printed 78.20 has no published recipe; here it is trained as ResNet-50 is",
    ("xlarge", "separate_downsampling"): "ConvNeXt-XL from scratch on ImageNet-1K has no published recipe: the paper "
    "trained it on ImageNet-22K first",
}


@dataclass(frozen=True)
class PaperRow:
    """One row of Table 10 or 11: top-1 on ImageNet-1K in percent, `gmacs` at 224 (the paper's "GFLOPs")."""

    order: int
    step: str
    parent: str | None
    label: str
    adopted: str  # yes | no | reference
    top1: float
    top1_std: float | None  # over three seeds (Table 10 only)
    gmacs: float


@cache
def rows(regime: str) -> dict[str, PaperRow]:
    """Return the paper's rows of a regime by step, in the roadmap's order; empty where the paper has no such table."""
    if regime not in TABLES:
        return {}
    lines = (files("roadmap.paper") / TABLES[regime]).read_text(encoding="utf-8").splitlines()
    return {
        r["step"]: PaperRow(
            order=int(r["order"]),
            step=r["step"],
            parent=r["parent"] or None,
            label=r["label"],
            adopted=r["adopted"],
            top1=float(r["top1"]),
            top1_std=float(r["top1_std"]) if r["top1_std"] else None,
            gmacs=float(r["gmacs"]),
        )
        for r in csv.DictReader(lines)
    }


@cache
def order() -> dict[str, int]:
    """Return the position of every step of the paper in the roadmap, 0 first."""
    return {step: row.order for step, row in rows("tiny").items()}


def remark(step: str, adopted: str) -> str:
    """Return in words what sets a step apart from those that the paper kept; nothing for one of these."""
    kinds = {"no": "tried, not kept", "reference": "reference"}
    return ", ".join([*([kinds[adopted]] if adopted in kinds else []), *([] if step in order() else [BEYOND])])


def label(step: str, regime: str) -> str | None:
    """Return the paper's label of a step in a regime, or the general one where the paper has no such regime."""
    general = {
        "resnet": "ResNet", "enhanced_recipe": "ResNet (enhanced recipe)",
        "separate_downsampling": "separate d.s. conv (ConvNeXt)", "swin": "Swin", "grn": "GRN (ConvNeXt V2)",
    }  # fmt: skip
    if step in rows(regime):
        return rows(regime)[step].label
    return general.get(step) or (rows("tiny")[step].label if step in rows("tiny") else None)


def position(step: str, parents: Mapping[str, str | None]) -> tuple[str, ...]:
    """Return the sort key of a step: the paper's order; a user's own step comes right after its parent.

    `parents` holds the parent of every step that is not the paper's; a parent that is unknown sorts to the end.
    """
    chain: list[str] = []
    known = order()
    while step not in known:
        if step in chain or step is None:
            return ("~", *reversed(chain))
        chain.append(step)
        step = parents.get(step)  # type: ignore[assignment]
    return (f"{known[step]:04d}", *reversed(chain))

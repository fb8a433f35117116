"""The columns of what some studies are for: a toggle's worth over sampled orders, and each row's own learning rate."""

from roadmap.report.analyse.formats import between, p_text, percent, signed
from roadmap.report.write.columns import Column, column, top1_text
from roadmap.text import shorten

ABOUT_P = "of its difference from the mean gain, adjusted by Holm over the toggles"
ABOUT_STD = "std. dev. of the gain between orders, without the part due to seeds"
ABOUT_EDGE = "the lowest or highest rate that was tried was chosen: the best may lie beyond the grid"
ABOUT_HELDOUT = "at the chosen rate, on training images that were held out; no accuracy on the validation images"
ABOUT_VERDICT = (
    "survives: significant (Welch, Holm over the steps of each roadmap) with the one recipe and, in the same "
    "direction, with own rates; lost: with the one recipe only; turns: in the other direction; appears: with own rates "
    "only; open: with neither"
)
POINTS, RATE, FACTOR = "{:.2f}".format, "{:.4g}".format, "{:.3g}".format

WORTH_COLUMNS = (
    column("toggle", "toggle"),
    column("mean gain (points)", "value", signed, "gain over the net before it, mean over the orders"),
    column("95 % over orders and seeds", "interval", between, "see docs/report.md", sort="interval.low"),
    column("over orders (points)", "orders_std", POINTS, ABOUT_STD),
    column("of seeds", "of_seeds", percent, "share of the variance of the mean gain that is due to seeds"),
    column("its step", "in_order", signed, "gain in the paper's order, in these runs"),
    column("step's p (Holm)", "in_order_p", p_text, ABOUT_P),
    column("paper gain", "paper_gain", signed, "difference of the printed means"),
    column("paper's p (Holm)", "paper_p", p_text, ABOUT_P),
    column("left out", "left_out", signed, "what the whole net loses without it"),
)
RATE_COLUMNS = (
    column("step", "step"),
    Column("label", lambda row: shorten(row.label, 40)),
    column("recipe's rate", "own", RATE),
    column("own rate", "rate", RATE, "chosen on held-out training images; ties go to the recipe's"),
    column("factor", "factor", FACTOR, "own rate over the recipe's"),
    Column("edge", lambda row: "edge" if row.at_edge else "", about=ABOUT_EDGE),
    column("held-out top-1 (%)", "heldout", POINTS, ABOUT_HELDOUT),
    column("spread over rates (points)", "spread", POINTS, "best less worst held-out accuracy of the row"),
    column("one recipe: top-1 (%)", "plain", top1_text, sort="plain.top1"),
    column("own rate: top-1 (%)", "tuned", top1_text, sort="tuned.top1"),
    column("gain, one recipe", "plain.gain.gain", signed),
    column("p (Holm), one recipe", "plain.gain.p_holm", p_text),
    column("gain, own rates", "tuned.gain.gain", signed),
    column("p (Holm), own rates", "tuned.gain.p_holm", p_text),
    column("verdict", "verdict", about=ABOUT_VERDICT),
)

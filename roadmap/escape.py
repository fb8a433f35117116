"""Text that others wrote (labels, folder names, error reasons), made safe for CSV, Markdown and LaTeX."""

import re
import unicodedata

from roadmap.text import clean

TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "“": "``",  # LaTeX's default encoding has no \textquotedbl
    "”": "''",
    '"': "''",
    "±": r"$\pm$",
    "−": "$-$",
    "†": r"$\dagger$",
    "…": r"\dots{}",
    **{char: f"\\{char}" for char in "$%&#_"},
}
FORMULA = "=+-@"  # what a spreadsheet takes for the start of a formula


def for_csv(text: object) -> str:
    """Return the text for a cell of a CSV file, so that no spreadsheet computes it."""
    plain = clean(text)
    # The full-width forms of the signs start a formula too, in some languages.
    return f"'{plain}" if plain and unicodedata.normalize("NFKC", plain[0])[0] in FORMULA else plain


def for_markdown(text: object, limit: int = 500) -> str:
    """Return the text for Markdown: no markup, no HTML, no links, and safe inside a table."""
    plain = clean(text, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    plain = re.sub(r"([\\`*_\[\]|~$#!])", r"\\\1", plain)
    # GitHub makes links out of bare addresses and names.
    return plain.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")


def for_tex(text: object) -> str:
    """Return the text for LaTeX: no command, no formula, and no letter that pdflatex does not know."""
    plain = re.sub('"([^"]*)"', "“\\1”", clean(text))
    return "".join(TEX.get(char, char if char.isascii() else "?") for char in plain)

"""Text that others wrote (labels, folder names, error reasons), made safe to show. Used by every part of the report."""

import re
import unicodedata

MAX_READ = 10_000  # characters looked at; what is longer is no label
TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "−": "$-$",
    "†": r"$\dagger$",
    "…": r"\dots{}",
    **{char: f"\\{char}" for char in "$%&#_"},
}
FORMULA = "=+-@"  # what a spreadsheet takes for the start of a formula


def clean(text: object, limit: int = 200) -> str:
    """Return one line of at most `limit` characters: no control, direction or private characters, at most two marks on a letter."""
    read = str(text)[:MAX_READ]
    if read.isascii() and read.isprintable():
        return shorten(" ".join(read.split()), limit)  # by far the most, and nothing in it to take out
    kept: list[str] = []
    marks = 0
    for char in unicodedata.normalize("NFC", read):
        kind = unicodedata.category(char)
        marks = marks + 1 if kind in {"Mn", "Me"} else 0
        if kind[0] == "Z" or char in "\t\r\n":
            kept.append(" ")
        elif kind[0] != "C" and marks <= 2:
            kept.append(char)
    return shorten(" ".join("".join(kept).split()), limit)


def shorten(text: str, limit: int) -> str:
    """Return the text, its middle left out where it is longer than `limit` characters: names often differ at their ends."""
    if len(text) <= limit:
        return text
    tail = max(1, limit // 4)
    return f"{text[: limit - tail - 1].rstrip()}…{text[-tail:].lstrip()}"


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
    return "".join(TEX.get(char, char if char.isascii() else "?") for char in clean(text))

"""Tables as Markdown and LaTeX."""

from __future__ import annotations

import re

import pandas as pd

from saga_study.findings.names import readable

LATEX_SIGNS = str.maketrans({  # what pandas leaves and plain LaTeX does not typeset
    "σ": r"$\sigma$", "ε": r"$\epsilon$",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "−": "$-$", "±": r"$\pm$", "→": r"$\to$",
    "×": r"$\times$", "≤": r"$\le$", "≥": r"$\ge$", "–": "--", "…": r"\dots{}", "“": "``", "”": "''", "’": "'", "λ": r"$\lambda$",
    "ℓ": r"$\ell$", "φ": r"$\varphi$", "θ": r"$\theta$", "ψ": r"$\psi$", "β": r"$\beta$", "δ": r"$\delta$", "ᾱ": r"$\bar\alpha$",
    "‖": r"$\Vert$", "∂": r"$\partial$", "Σ": r"$\Sigma$", "·": r"$\cdot$",
})  # fmt: skip


def _line(value: object) -> str:
    return " ".join(readable(value).splitlines())


def markdown_table(dataframe: pd.DataFrame) -> str:
    """Return a table in Markdown; numbers are right-aligned and missing values left blank."""

    def cell(value: object) -> str:
        if pd.api.types.is_scalar(value) and pd.isna(value):
            return ""
        text = _line(f"{value:.4g}" if isinstance(value, float) else value).replace("|", "\\|")
        return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", re.sub(r"\](?=[(\[:])", r"]\\", text))  # names make no HTML and no links

    numeric = [pd.api.types.is_numeric_dtype(dataframe[name]) for name in dataframe.columns]
    rows = [
        [cell(name) for name in dataframe.columns],
        ["---:" if is_number else "---" for is_number in numeric],
        *([cell(value) for value in row] for row in dataframe.itertuples(index=False)),
    ]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def latex_table(dataframe: pd.DataFrame) -> str:
    """Return a table in LaTeX for the package booktabs, with text escaped; numbers are right-aligned and missing values left blank."""
    align = "".join("r" if pd.api.types.is_numeric_dtype(kind) else "l" for kind in dataframe.dtypes)
    one_line = dataframe.map(lambda value: _line(value) if isinstance(value, str) else value)
    one_line.columns = map(_line, dataframe.columns)
    text = one_line.to_latex(index=False, escape=True, na_rep="", float_format="{:.4g}".format, column_format=align)
    text = re.sub(r"^([\[*])", r"{\1}", text, flags=re.MULTILINE)  # after a line's end these would be its arguments
    return "% needs \\usepackage{booktabs}\n" + text.translate(LATEX_SIGNS)

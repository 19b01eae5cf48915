"""Tables as Markdown and LaTeX."""

from __future__ import annotations

import re

import pandas as pd

LATEX_SIGNS = str.maketrans({  # what pandas leaves and plain LaTeX does not typeset
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "−": "$-$", "±": r"$\pm$", "→": r"$\to$",
    "×": r"$\times$", "≤": r"$\le$", "≥": r"$\ge$", "–": "--", "…": r"\dots{}", "“": "``", "”": "''", "’": "'", "λ": r"$\lambda$",
    "ℓ": r"$\ell$", "φ": r"$\varphi$", "θ": r"$\theta$", "ψ": r"$\psi$", "β": r"$\beta$", "δ": r"$\delta$", "ᾱ": r"$\bar\alpha$",
    "‖": r"$\Vert$", "∂": r"$\partial$", "Σ": r"$\Sigma$", "·": r"$\cdot$",
})  # fmt: skip


def markdown_table(dataframe: pd.DataFrame) -> str:
    """Return a table in Markdown; numbers are right-aligned and missing values left blank."""

    def cell(value: object) -> str:
        if pd.isna(value):
            return ""
        return (f"{value:.4g}" if isinstance(value, float) else str(value)).replace("|", "\\|").replace("\n", " ")

    numeric = [pd.api.types.is_numeric_dtype(dataframe[name]) for name in dataframe.columns]
    rows = [
        [str(name) for name in dataframe.columns],
        ["---:" if is_number else "---" for is_number in numeric],
        *([cell(value) for value in row] for row in dataframe.itertuples(index=False)),
    ]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def latex_table(dataframe: pd.DataFrame) -> str:
    """Return a table in LaTeX for the package booktabs, with text escaped; numbers are right-aligned and missing values left blank."""
    align = "".join("r" if pd.api.types.is_numeric_dtype(kind) else "l" for kind in dataframe.dtypes)
    one_line = dataframe.replace("\n", " ", regex=True)
    text = one_line.to_latex(index=False, escape=True, na_rep="", float_format="{:.4g}".format, column_format=align)
    text = re.sub(r"^([\[*])", r"{\1}", text, flags=re.MULTILINE)  # after a line's end these would be its arguments
    return "% needs \\usepackage{booktabs}\n" + text.translate(LATEX_SIGNS)

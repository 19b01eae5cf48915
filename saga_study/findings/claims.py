"""The paper's claims and ours, one by one: what is said, what a study measured, and the verdict that follows from the interval.

A claim names the table that answers it, or compares the runs that a table lists; nothing is trained for it. Verdicts follow one rule,
whichever way the numbers fall: *reproduced* if the 95 % interval lies on the side that the claim says, *contradicted* if it lies on
the other, *open at this scale* if it includes the null; *not measured* if the study lacks the table. Where all benchmarks together
decide, those whose own interval lies on the other side are named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from saga_lib.common.errors import SagaError
from saga_study.findings.claim_findings import (
    BEST,
    BY_READING,
    PF_BASE,
    Finding,
    Side,
    audited,
    base_of,
    by_seed,
    compare,
    credited,
    deployment,
    fades,
    goes_together,
    hardly_matters,
    keeps_less_than_half,
    last_layer_points_worse,
    not_measured,
    on_best_loss,
    points_at,
    reward_matters,
    small_against_full,
)
from saga_study.findings.few_shot import MEAN, metric_name
from saga_study.findings.phrases import BEFORE, METRICS, SEARCHED, SHUFFLED
from saga_study.findings.samples import POOLED
from saga_study.findings.words import NOTHING, PAIR_KINDS, short_name

REPRODUCED, CONTRADICTED, OPEN, MIXED, MISSING = "reproduced", "contradicted", "open at this scale", "mixed", "not measured"
OURS = "this study"


@dataclass(frozen=True)
class Claim:
    """A quantitative or causal statement of the paper, the control that it would need, or a statement of ours (`where` is `OURS`)."""

    says: str
    where: str  # section or table
    paper: str  # its numbers, full scale
    notebook: str
    find: Callable[[Path], list[Finding]]  # of a study's folder; the first finding decides if it is over all benchmarks


# -------------------------------------------------------------------------------------------------------- claims

OUR_COMPARISONS: dict[str, dict[str, Side]] = {
    "SAGA retrieves unseen classes better than the best metric loss, tuned": {
        "method": partial(on_best_loss, row="saga"), "against": BEST,
    },
    "Reading contrast retrieves unseen classes better than the best metric loss, tuned": {
        "method": partial(on_best_loss, row="contrast"), "against": BEST,
    },
    "Reading contrast retrieves better than SAGA on Potential Field": {"method": "contrast_pf", "against": "saga_pf"},
    "Reading contrast retrieves better than SAGA on the best metric loss": {
        "method": partial(on_best_loss, row="contrast"), "against": partial(on_best_loss, row="saga"),
    },
}  # fmt: skip
ONE_LABEL = {"tables": ("18_gains",), "metric": metric_name(MEAN, 1)}
CLAIMS = (
    Claim(
        "Metric learning with Potential Field improves on the pre-trained tower.", "Table 1",
        "R@1 +6.0, +23.0, +24.3, +13.4 points (CUB, Cars, Aircraft, iNat-Aves)", "04_main_results",
        partial(compare, method="pre-trained", against="pf", is_turned=True),
    ),
    Claim(
        "SAGA retrieves unseen classes better than the metric-learning loss it is built on.", "Table 1",
        "R@1 +6.3, +3.3, +6.1, +4.5 points", "04_main_results", partial(compare, method="saga_pf", against=PF_BASE),
    ),
    Claim(
        "It does so beyond the first neighbour: R@4 rises.", "Table 1", "R@4 +3.4, +0.8, +0.7, +2.1 points", "04_main_results",
        partial(by_seed, method="saga_pf", against=PF_BASE, name="R@4", form="+.1f", unit=" points of R@4"),
    ),
    Claim(
        "It makes clusters of the classes: NMI rises.", "Table 1", "NMI +0.02, +0.03, +0.05, +0.07", "04_main_results",
        partial(by_seed, method="saga_pf", against=PF_BASE, name="NMI", form="+.3f", unit=" NMI"),
    ),
    Claim(
        "The gain is the reward's: the same training with advantages dealt out at random does not have it.", "implied; no control",
        NOTHING, "04_main_results", reward_matters,
    ),
    Claim(
        "The gain is not the attention pooler's: it is there against PF with the same pooler.", "implied; baselines pool by the mean",
        NOTHING, "04_main_results", partial(compare, method="saga_pf", against="pf_attention"),
    ),
    Claim(
        "The gain is not that of more compute: it is there against PF trained for as long on the clock.", "implied; no control",
        NOTHING, "04_main_results", partial(compare, method="saga_pf", against="pf_long"),
    ),
    Claim(
        "GRPO through the frozen language model makes the gain, without attention alignment.", "Table 2",
        "R@1 +5.4, +4.9 points (CUB, Aircraft)", "04_main_results", partial(compare, method="pf_grpo", against=PF_BASE),
    ),
    Claim(
        "Attention alignment alone gains a little.", "Table 2", "R@1 +0.5, +0.7 points", "04_main_results",
        partial(compare, method="pf_kl", against="pf_attention"),
    ),
    Claim(
        "Attention alignment adds to GRPO.", "Table 2", "R@1 +0.9, +1.2 points", "04_main_results",
        partial(compare, method="saga_pf", against="pf_grpo"),
    ),
    Claim(
        "GRPO gains with a generic prompt, too, that names no attributes.", "Table 2", "R@1 +2.5, +2.2 points (CUB, Aircraft)",
        "05_loss_components", partial(compare, method="pf_grpo_generic", against=PF_BASE),
    ),
    Claim(
        "The structured prompt is worth more than the generic one.", "Table 2", "R@1 +2.9, +2.7 points (CUB, Aircraft)",
        "05_loss_components", partial(compare, method="pf_grpo_taught", against="pf_grpo_generic"),
    ),
    Claim(
        "The weights of the losses hardly matter: half and double cannot be told apart.", "Eq. 8, App. C", "0.5–2 indistinguishable",
        "11_sensitivity", partial(hardly_matters, settings=("lambda_lm", "lambda_kl"), factor=2),
    ),
    Claim(
        "SAGA gains on Multi-Similarity as well.", "Table 3", "R@1 +8.3, +9.8 points (CUB, Aircraft)", "06_dml_agnostic",
        partial(compare, method="saga_ms", against=partial(base_of, loss="ms"), tables=("06_gains",)),
    ),
    Claim(
        "SAGA gains on Proxy-Anchor as well.", "Table 3", "R@1 +7.8, +9.6 points (CUB, Aircraft)", "06_dml_agnostic",
        partial(compare, method="saga_pa", against=partial(base_of, loss="pa"), tables=("06_gains",)),
    ),
    Claim(
        "SAGA gains at an eighth of the embedding size as well.", "Table 4", "R@1 +7.1, +3.8 points (CUB, Aircraft)",
        "07_embedding_size", partial(compare, method="saga_pf", against=PF_BASE, tables=("07_gains",), size_rank=1),
    ),
    Claim(
        "SAGA gains at a thirty-second of the embedding size as well.", "Table 4", "R@1 +5.5, +4.0 points (CUB, Aircraft)",
        "07_embedding_size", partial(compare, method="saga_pf", against=PF_BASE, tables=("07_gains",), size_rank=0),
    ),
    Claim(
        "A small embedding of SAGA retrieves better than the full one of metric learning.", "Table 4",
        "128 against 4096 dimensions: R@1 +2.2, +2.1 points (CUB, Aircraft)", "07_embedding_size",
        partial(small_against_full, method="saga_pf", against=PF_BASE),
    ),
    Claim(
        "SAGA gains with encoder and supervisor of another MLLM family as well.", "Table 5", "R@1 +2.1 points (CUB, InternVL3.5-8B)",
        "08_backbone_transfer", partial(compare, method="saga_pf", against=PF_BASE, tables=("08_gains",)),
    ),
    Claim(
        "While the supervisor names an attribute it looks at where it is.", "Figure 3", "shown on examples", "09_attention", points_at,
    ),
    Claim(
        "The last layer's attention is the worse teacher, hence an earlier one is aligned.", "Eqs. 6–7", "ℓ = 26 of 36; said, not shown",
        "09_attention", last_layer_points_worse,
    ),
    Claim(
        "Max pooling does as well as mean pooling in the baselines.", "App. B", "differs by < 0.5 R@1", "04_main_results", not_measured,
    ),
    Claim(
        "GRPO's gradient concentrates on the attributes in which two classes differ.", "Sec. 3.2", "argued, not measured",
        "12_gradient_audit", partial(audited, measure="gradient ratio", group="differing / shared"),
    ),
    Claim(
        "It does because advantages cancel on attributes that the classes share.", "Sec. 3.2", "argued, not measured",
        "12_gradient_audit", partial(audited, measure="surviving ratio", group="differing / shared"),
    ),
    Claim(
        "It fades on discriminating attributes as the encoder resolves them.", "Sec. 3.2", "argued, not measured",
        "12_gradient_audit", partial(fades, measure="gradient per slot", group="differing"),
    ),
    Claim(
        "Inference costs what it costs for the bare encoder.", "Sec. 3, Eq. 9", "argued, not measured", "16_search", deployment,
    ),
    *(
        Claim(f"{says}, by {metric}.", OURS, NOTHING, "04_main_results", partial(compare, tables=("04_answer",), metric=metric, **sides))
        for says, sides in OUR_COMPARISONS.items() for metric in ("R@1", "MAP@R")
    ),
    *(
        Claim(
            f"With a language model of permuted weights reading contrast keeps less than half of its gain, by {metric}.", OURS, NOTHING,
            "20_signals",
            partial(
                keeps_less_than_half, method="contrast_permuted", of="contrast_pf", against=PF_BASE, tables=("20_signals",), metric=column
            ),
        )
        for metric, column in (("R@1", "R@1"), ("MAP@R", "MAP@R difference"))
    ),
    Claim(
        "Metric learning alone makes a tower harder to read: by words, the frozen model finds fewer images of unseen classes than before.",
        OURS, NOTHING, "19_words", partial(compare, method=BEST, against=BEFORE, is_turned=True, **BY_READING),
    ),
    Claim(
        "SAGA keeps a tower readable: by words, the frozen model finds more images than after the best metric loss alone.", OURS, NOTHING,
        "19_words", partial(compare, method=partial(on_best_loss, row="saga"), against=BEST, **BY_READING),
    ),
    Claim(
        "One search finds images of unseen classes by words, along directions learnt from the frozen model's own descriptions: with "
        "descriptions dealt out to other images it finds fewer.", OURS, NOTHING, "19_words",
        partial(compare, method=BEST, against=SHUFFLED, tables=("19_differences",), metric=METRICS[SEARCHED]),
    ),
    *(
        Claim(
            f"On pairs of {kind} the verdict's reward credits true descriptions more than false ones.", OURS, NOTHING, "12_gradient_audit",
            partial(credited, kind=kind),
        )
        for kind in PAIR_KINDS
    ),
    Claim(
        "The attributes that SAGA makes easier to read from the tokens are those by which it retrieves better among siblings.", OURS,
        NOTHING, "20_signals", partial(goes_together, method="saga_pf", step="tokens → retrieval"),
    ),
    Claim(
        "A list of three attributes that grows by what it lacks trains a better encoder than the short one.", OURS,
        NOTHING, "13_vocabulary_discovery", partial(compare, method="grown", against="short", tables=("13_differences",)),
    ),
    Claim(
        "Part of SAGA's gain needs no language model: the anchor to the pre-trained embedding alone gains over Potential Field.", OURS,
        NOTHING, "04_main_results", partial(compare, method="pf_anchor", against="pf"),
    ),
    Claim(
        "SAGA helps where labels are few: one labelled image per unseen class names it better than with its metric loss alone.", OURS,
        NOTHING, "18_few_shot", partial(compare, method="saga_pf", against=PF_BASE, **ONE_LABEL),
    ),
    Claim(
        "That gain is the reward's: with advantages shuffled within groups it is not there.", OURS, NOTHING, "18_few_shot",
        partial(reward_matters, control="saga_shuffled_in_group", **ONE_LABEL),
    ),
    Claim(
        "SAGA's gain is larger with one label per class than with ten.", OURS, NOTHING, "18_few_shot",
        partial(compare, method="saga_pf", against=PF_BASE, tables=("18_gains",), metric=metric_name(MEAN, 1, 10)),
    ),
    *(
        Claim(
            f"{name} transfers better than labels alone to benchmarks that the encoder was not trained for.", OURS, NOTHING, "18_few_shot",
            partial(compare, method=method, against=PF_BASE, tables=("18_elsewhere",), metric="MAP@R"),
        )
        for method, name in (("saga_pf", "Attribute supervision (SAGA)"), ("contrast_pf", "Attribute supervision by reading contrast"))
    ),
)  # fmt: skip


def verdict(findings: Sequence[Finding]) -> str:
    """Return the verdict on a claim: that of all benchmarks together where there is one, else what the benchmarks agree on."""
    if not findings:
        return MISSING
    deciding = findings[:1] if findings[0].benchmark == POOLED else findings
    signs = {finding.sign for finding in deciding} - {None}
    if {1, -1} <= {finding.sign for finding in findings} and signs <= {0}:
        return MIXED  # the mean of benchmarks that contradict each other says little
    if not signs or signs == {0}:
        return OPEN
    if signs == {1, -1} or signs == {1, 0, -1}:
        return MIXED
    decided = sum(finding.sign in (1, -1) for finding in deciding)
    word, other = (REPRODUCED, CONTRADICTED) if 1 in signs else (CONTRADICTED, REPRODUCED)
    if decided < len(deciding):
        return f"{word} on {decided} of {len(deciding)}, else open"
    against = [short_name(finding.benchmark) for finding in findings if {finding.sign} == {-sign for sign in signs}]
    return f"{word} over all, {other} on {', '.join(against)}" if against else word


def claims_table(folder: Path, claims: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """Return one row per claim of the paper, and of ours, as a study's folder answers it.

    Columns: #, claim, paper (full scale), where, measured, benchmark by benchmark, seeds, verdict, notebook, runs.
    Raises `SagaError` if the folder does not exist.
    """
    if not folder.is_dir():
        raise SagaError(f"there is no study {folder}; run ./run_all.sh first")
    rows = []
    for number, claim in enumerate(claims, 1):
        findings = claim.find(folder)
        is_pooled = bool(findings) and findings[0].benchmark == POOLED
        singles = findings[1:] if is_pooled else findings
        each = "; ".join(f"{short_name(finding.benchmark)}: {finding.text}" for finding in singles)
        rows.append(
            {
                "#": number, "claim": claim.says, "where": claim.where, "paper (full scale)": claim.paper,
                "measured [95 %]": findings[0].text if is_pooled else each or NOTHING,
                "benchmark by benchmark": each if is_pooled else NOTHING,
                "seeds": _range([finding.seeds for finding in findings]), "verdict": verdict(findings),
                "notebook": claim.notebook, "runs": " ".join(dict.fromkeys(key for finding in findings for key in finding.runs)),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def claims_sentences(table: pd.DataFrame) -> list[str]:
    """Return how many claims came out how, and each that the measurements contradict."""
    counts = table["verdict"].str.replace(r" on \d+ of \d+, else open", " on some benchmarks", regex=True).str.split(" over all").str[0]
    outcomes = ", ".join(f"{count} {name}" for name, count in counts.value_counts().items())
    by_chance = "Each verdict rests on intervals of 95 %, of which about one in twenty excludes its null by chance."
    against = table[table["verdict"].str.contains(f"{CONTRADICTED}|{MIXED}")]
    named = [f"{row['verdict'].capitalize()}: {row['claim']}" for _, row in against.iterrows()]
    return [f"Of {len(table)} claims: {outcomes}. {by_chance}", *named]



def _range(seeds: Sequence[int]) -> str:
    seeds = [count for count in seeds if count]
    return NOTHING if not seeds else str(min(seeds)) if min(seeds) == max(seeds) else f"{min(seeds)}–{max(seeds)}"

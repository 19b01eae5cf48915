"""Claims: the verdict follows from the interval, and every number and run is one that a notebook saved."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from saga_lib.common.errors import SagaError
from saga_study import methods
from saga_study.design.tables import TABLE_RUNS
from saga_study.findings import claim_findings, claims
from saga_study.findings.answer import direct_pairs
from saga_study.findings.claims import CLAIMS, Claim, Finding, claims_sentences, claims_table, compare, verdict
from saga_study.findings.differences import parts
from saga_study.findings.report import verdict_kind
from saga_study.findings.samples import ALL_ATTRIBUTES, POOLED
from saga_study.methods import make_config
from saga_study.notebook import NotebookContext
from saga_study.paths import NOTEBOOKS

STUDY = "20260101-000000-miniature-abc"


def finding(sign, benchmark="miniature_birds"):
    return Finding(benchmark, "+1.0", sign, 3)


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        ([], "not measured"),
        ([finding(1)], "reproduced"),
        ([finding(-1)], "contradicted"),
        ([finding(0)], "open at this scale"),
        ([finding(None)], "open at this scale"),
        ([finding(1), finding(-1)], "mixed"),
        ([finding(1), finding(0), finding(-1)], "mixed"),
        ([finding(1), finding(0)], "reproduced on 1 of 2, else open"),
        ([finding(-1), finding(None), finding(-1)], "contradicted on 2 of 3, else open"),
        ([finding(1, POOLED), finding(1), finding(0)], "reproduced"),  # all benchmarks together decide
        ([finding(1, POOLED), finding(1), finding(-1, "miniature_aves")], "reproduced over all, contradicted on aves"),
        ([finding(-1, POOLED), finding(1), finding(0)], "contradicted over all, reproduced on birds"),
        ([finding(0, POOLED), finding(-1)], "open at this scale"),
        ([finding(0, POOLED), finding(1), finding(1)], "open at this scale"),
    ],
)
def test_the_verdict_follows_the_intervals(findings, expected):
    assert verdict(findings) == expected


@pytest.fixture(autouse=True)
def chosen(monkeypatch):
    """What the search chose does not decide here: the anchor helps InfoNCE alone, which is the best loss."""
    monkeypatch.setitem(methods.ANCHORED, "miniature", ("infonce",))
    monkeypatch.setitem(methods.BEST_LOSS, "miniature", "infonce")


@pytest.fixture
def study(results):
    """A study with the tables of notebooks 04 and 12 that claims are read from."""
    (results / STUDY).mkdir(parents=True)
    (results / STUDY / "manifest.json").write_text(json.dumps({"profile": "miniature"}))
    return results / STUDY


def save(study, name, rows):
    NotebookContext(STUDY, "miniature", "04").save_table(name, pd.DataFrame(rows))


def answer_row(method, against, benchmark, difference, low, high, seeds=3):
    names = ("method", "against", "benchmark", "difference", "low", "high", "queries", "seeds")
    return dict(zip(names, (method, against, benchmark, difference, low, high, 100, seeds), strict=True))


def test_a_comparison_is_read_from_the_saved_table(study):
    save(study, "04_answer_values", [
        answer_row("saga_pf", "pf", "miniature_birds", 1.26, 0.2, 2.3, 5), answer_row("saga_pf", "pf", "miniature_cars", -0.5, -1.5, 0.4),
        answer_row("saga_pf", "pf", POOLED, 0.38, -0.2, 0.9), answer_row("oracle", "pf", POOLED, 9.0, 8.0, 10.0),
    ])  # fmt: skip
    for name in ("birds", "cars"):
        rows = [{"method": method, "runs": f"{method}{name}0 {method}{name}1"} for method in ("pf", "saga_pf", "oracle")]
        save(study, f"04_table1_miniature_{name}_values", rows)
    found = compare(study, "saga_pf", "pf")
    assert [one.benchmark for one in found] == [POOLED, "miniature_birds", "miniature_cars"]
    assert [one.sign for one in found] == [0, 1, 0] and [one.seeds for one in found] == [3, 5, 3]
    assert found[1].text == "+1.3 points of R@1 [+0.2, +2.3]" and found[2].text.startswith("−0.5")
    assert found[2].runs == ("pfcars0", "pfcars1", "saga_pfcars0", "saga_pfcars1") and len(found[0].runs) == 8
    (turned,) = compare(study, "oracle", "pf", is_turned=True)
    assert turned.sign == -1 and turned.text == "−9.0 points of R@1 [−10.0, −8.0]"

    table = claims_table(study).set_index("claim")
    row = table.loc["SAGA retrieves unseen classes better than the metric-learning loss it is built on."]
    assert row["verdict"] == "open at this scale" and row["measured [95 %]"].startswith("+0.4 points") and row["seeds"] == "3–5"
    assert "birds: +1.3" in row["benchmark by benchmark"] and "cars: −0.5" in row["benchmark by benchmark"]
    assert table.loc["Attention alignment alone gains a little.", "verdict"] == "not measured"


def rows_of_table_1(study, *names):
    save(study, "04_table1_miniature_birds_values", [{"method": name, "runs": f"{name}0"} for name in names])


def measured(study, start):
    """The verdict and the number of the one claim that starts so."""
    table = claims_table(study)
    (row,) = table[table["claim"].str.startswith(start)].to_dict("records")
    return row["verdict"], row["measured [95 %]"]


def test_a_loss_is_what_signals_are_added_to_in_this_study(study, monkeypatch):
    save(study, "04_answer_values", [
        answer_row("saga_pf", "pf", POOLED, 3, 2, 4), answer_row("saga_pf", "pf_anchor", POOLED, -3, -4, -2),
        answer_row("saga_infonce", "infonce_anchor", POOLED, 2, 1, 3), answer_row("saga_infonce", "infonce", POOLED, 9, 8, 10),
    ])  # fmt: skip
    own, best = "SAGA retrieves unseen classes better than the metric-learning loss", "SAGA retrieves unseen classes better than the best"
    rows_of_table_1(study, "pf", "pf_anchor", "saga_pf", "infonce", "infonce_anchor", "saga_infonce")
    assert measured(study, own)[0] == "reproduced", "PF is not anchored"
    assert measured(study, f"{best} metric loss, tuned, by R@1")[1].startswith("+2.0")
    monkeypatch.setitem(methods.ANCHORED, "miniature", ("pf",))
    assert measured(study, own)[0] == "contradicted"
    assert measured(study, f"{best} metric loss, tuned, by R@1")[1].startswith("+9.0")
    rows_of_table_1(study, "pf", "saga_pf")
    assert measured(study, own)[0] == "reproduced", "a study without the row of the anchor added SAGA to the bare loss"
    monkeypatch.setitem(methods.BEST_LOSS, "miniature", "pf")
    assert measured(study, f"{best} metric loss, tuned, by R@1")[1].startswith("+3.0")
    (study / "manifest.json").write_text(json.dumps({"profile": "paper"}))
    assert claims.base_of(study, "infonce") == "infonce" and claims.on_best_loss(study, "saga") == "saga_pf"


def test_our_comparisons_are_judged_by_both_metrics(study):
    maps = {"MAP@R": 4.0, "MAP@R low": 3.0, "MAP@R high": 5.0}
    rows_of_table_1(study, "infonce_anchor")
    save(study, "04_answer_values", [
        answer_row("contrast_infonce", "infonce_anchor", POOLED, 0.5, -0.2, 1.2) | maps,
        answer_row("contrast_infonce", "saga_infonce", POOLED, 0.5, 0.2, 1.2) | dict.fromkeys(maps, np.nan),
        answer_row("contrast_pf", "saga_pf", POOLED, -1.0, -2.0, -0.2) | maps, answer_row("pf_anchor", "pf", POOLED, 1, 0.5, 2) | maps,
    ])  # fmt: skip
    best = "Reading contrast retrieves unseen classes better than the best metric loss, tuned, by"
    assert measured(study, f"{best} R@1") == ("open at this scale", "+0.5 points of R@1 [−0.2, +1.2]")
    assert measured(study, f"{best} MAP@R") == ("reproduced", "+4.0 points of MAP@R [+3.0, +5.0]")
    saga = "Reading contrast retrieves better than SAGA on"
    assert [measured(study, f"{saga} Potential Field, by {of}")[0] for of in ("R@1", "MAP@R")] == ["contradicted", "reproduced"]
    found = [measured(study, f"{saga} the best metric loss, by {of}")[0] for of in ("R@1", "MAP@R")]
    assert found == ["reproduced", "not measured"], "an empty cell is no measurement"
    assert measured(study, "Part of SAGA's gain needs no language model")[0] == "reproduced"


@pytest.mark.parametrize("control", ["saga_shuffled", "saga_shuffled_in_group"])
def test_the_distance_to_shuffled_advantages_is_a_claim_only_of_a_saga_that_gains(study, control):
    rows_of_table_1(study, "pf", "saga_pf")
    for gain, expected in (((2, 1, 3), "reproduced"), ((0, -1, 1), "open at this scale"), ((-2, -3, -1), "open at this scale")):
        rows = [answer_row("saga_pf", "pf", POOLED, *gain), answer_row("saga_pf", control, POOLED, 5, 4, 6)]
        save(study, "04_answer_values", rows)
        verdict_, text = measured(study, "The gain is the reward's")
        assert verdict_ == expected and text.startswith("+5.0 points of R@1 [+4.0, +6.0]")
        assert ("no claim: SAGA is not above its loss" in text) == (expected != "reproduced")
    save(study, "04_answer_values", [*rows, answer_row("saga_pf", "saga_shuffled", POOLED, 9, 8, 10)])
    assert measured(study, "The gain is the reward's")[1].startswith("+5" if control == "saga_shuffled_in_group" else "+5.0")


@pytest.mark.parametrize(
    ("interval", "expected"),
    [((0.1, -0.5, 0.7), "reproduced"), ((-2, -3, -1), "reproduced"), ((2, 1, 3), "open at this scale"), ((3, 2.6, 4), "contradicted")],
)
def test_a_permuted_language_model_is_claimed_to_keep_less_than_half(study, interval, expected):
    start = "With a language model of permuted weights reading contrast keeps less than half of its gain, by R@1"
    assert measured(study, start)[0] == "not measured"
    rows_of_table_1(study, "pf")
    row = {"label": "permuted", "embedding_dim": 128, "absent": "", "runs": "p0 p1"}
    row |= answer_row("contrast_permuted", "pf", POOLED, *interval)
    gain = row | answer_row("contrast_pf", "pf", POOLED, 5, 4, 6)
    rows = [one | dict.fromkeys((of_map := "MAP@R difference", f"{of_map} low", f"{of_map} high"), 9) for one in (row, gain)]
    save(study, "20_signals_values", rows)
    verdict_, text = measured(study, start)
    assert verdict_ == expected and "points of R@1" in text and text.startswith(f"{interval[0]:+.1f}".replace("-", "−"))
    assert text.endswith("(half of the gain: +2.5)")
    by_map = measured(study, "With a language model of permuted weights reading contrast keeps less than half of its gain, by MAP@R")
    assert by_map == ("contradicted", "+9.0 points of MAP@R [+9.0, +9.0] (half of the gain: +4.5)")
    save(study, "20_signals_values", [{name: value for name, value in one.items() if name != "runs"} for one in rows])
    assert measured(study, start)[0] == expected, "of a table without runs"
    save(study, "20_signals_values", [row, gain | {"low": -1}])
    assert measured(study, start)[0] == "open at this scale" and "there is no gain to keep" in measured(study, start)[1]


def test_what_table_1_lacks_is_read_from_the_tables_of_its_own(study):
    where = {"embedding_dim": 128, "label": "x", "absent": ""}
    save(study, "05_differences_values", [where | answer_row("pf_kl", "pf", "miniature_birds", 0.5, 0.1, 0.9, 1)])
    save(study, "05_parts_values", [where | answer_row("saga_pf", "pf_grpo", "miniature_birds", np.nan, np.nan, np.nan, 0)])
    save(study, "05_table2_values", [{"method": "pf_kl", "dataset": name, "runs": f"kl{name}"} for name in ("miniature_birds", "else")])
    (found,) = compare(study, "pf_kl", "pf")
    assert (found.sign, found.seeds, found.runs) == (1, 1, ("klminiature_birds",))
    assert compare(study, "saga_pf", "pf_grpo") == []  # a cell that was not run is no measurement
    save(study, "04_answer_values", [answer_row("pf_kl", "pf", "miniature_birds", -0.5, -0.9, -0.1)])
    assert [one.sign for one in compare(study, "pf_kl", "pf")] == [-1]


def test_the_smallest_embedding_decides_on_table_4(study):
    lows = {128: 1, 4: -3}
    rows = [answer_row("saga_pf", "pf", "miniature_birds", low + 1, low, low + 2) | {"embedding_dim": dim} for dim, low in lows.items()]
    save(study, "07_gains_values", rows[:1])
    options = {"tables": ("07_gains",), "size_rank": 0}
    assert compare(study, "saga_pf", "pf", **options) == []  # the full size alone says nothing about small ones
    save(study, "07_gains_values", rows)
    cells = [{"method": "pf", "dataset": "miniature_birds", "embedding_dim": dim, "runs": f"pf{dim}"} for dim in (128, 4)]
    save(study, "07_table4_values", cells)
    (found,) = compare(study, "saga_pf", "pf", **options)
    assert found.sign == -1 and found.runs == ("pf4",)


def audit_rows(first, last, ratio):
    names = ("step", "measure", "group", "value", "low", "high", "pairs", "runs")
    rows = [
        (1, "gradient per slot", "differing", *first, 20, 3),
        (30, "gradient per slot", "differing", np.nan, np.nan, np.nan, 0, 0),
        (150, "gradient per slot", "differing", 0.1, np.nan, np.nan, 1, 1),  # a single step late in training says little
        ("later", "gradient per slot", "differing", *last, 21, 3),
        ("all", "gradient ratio", "differing / shared", *ratio, 60, 3),
    ]
    return [dict(zip(names, row, strict=True)) for row in rows]


@pytest.mark.parametrize(
    ("last", "expected"), [((0.4, 0.3, 0.5), 1), ((1.9, 1.5, 2.2), -1), ((0.9, 0.7, 1.1), 0), ((0.4, np.nan, np.nan), None)]
)
def test_what_fades_must_leave_the_first_interval(study, last, expected):
    save(study, "12_audit_miniature_birds_values", audit_rows((1.0, 0.8, 1.2), last, (1.5, 1.2, 1.8)))
    (found,) = claims.fades(study, "gradient per slot", "differing")
    assert found.sign == expected and found.text.startswith("step 1: 1 [0.8, 1.2] (20 pairs); later: ")
    (ratio,) = claims.audited(study, "gradient ratio", "differing / shared")
    assert ratio.sign == 1 and ratio.text == "1.50× [1.20, 1.80]" and ratio.seeds == 3


def test_the_cost_of_inference_is_judged_by_its_tolerance(study, tmp_path, monkeypatch):
    record = {"machine": "one", "batch_images_per_second": {"ratio": 0.97}, "peak_mib_of_a_batch": {"ratio": 1.0}}
    monkeypatch.setattr(claim_findings, "DEPLOYMENT", tmp_path / "deployment.json")
    assert claims.deployment(study) == []
    for ratio, sign in ((0.97, 1), (0.9, -1), (1.2, -1)):
        record["batch_images_per_second"]["ratio"] = ratio
        claim_findings.DEPLOYMENT.write_text(json.dumps(record))
        assert claims.deployment(study)[0].sign == sign


def test_attention_must_beat_all_of_its_controls(study):
    names = ("tower", "layer", "attribute", "pointing", "pointing low", "pointing high", "chance", "others", "swapped", "seeds")
    mean = ALL_ATTRIBUTES
    rows = [
        ("SAGA", 0, mean, 65, 61, 69, 7, 9, 40, 3), ("pre-trained", 0, mean, 43, 39, 47, 7, 9, 40, 1),
        ("odd", 0, mean, 30, 26, 34, 7, 9, 40, 2), ("SAGA", 1, mean, 90, 89, 91, 7, 9, 40, 3),
        ("SAGA", 0, "bill shape", 90, 89, 91, 7, 9, 40, 3),
    ]  # fmt: skip
    save(study, "09_pointing_miniature_birds_values", [dict(zip(names, row, strict=True)) for row in rows])
    found = claims.points_at(study)
    assert [one.sign for one in found] == [1, 0, -1] and found[0].text.startswith("SAGA 65 % [61, 69] (chance 7, other")
    assert [one.seeds for one in found] == [3, 0, 2], "the pre-trained tower has no training seed"


def test_weights_that_move_the_result_contradict_their_claim(study):
    names = ("setting", "value", "is_profile", "difference", "low", "high", "seeds", "runs")
    rows = [
        ("lambda_lm", 0.1, True, 0, 0, 0, 3, "a b c"), ("lambda_lm", 0.3, False, -1.0, -2.0, -0.1, 1, "b"),
        ("lambda_lm", 0.2, False, 0.5, 0.1, 0.9, 1, "g"), ("lambda_lm", 0.05, False, 0.5, -1.1, 2.1, 1, "h"),  # little; too wide to tell
        ("lambda_lm", 1.0, False, -9, -9, -8, 1, "c"),  # too far
        ("lambda_kl", 0.1, True, 0, 0, 0, 1, "a"), ("lambda_kl", 0.05, False, 0.2, -0.4, 0.9, 2, "d e"),
        ("lambda_kl", 0.0, False, 1, 1, 2, 1, "e"), ("lambda_kl", 0.2, False, np.nan, np.nan, np.nan, 0, ""),  # too far; not run
        ("group_size", 8, True, 0, 0, 0, 1, "a"), ("group_size", 4, False, 3, 2, 4, 1, "f"),  # no weight
    ]  # fmt: skip
    save(study, "11_sensitivity_values", [dict(zip(names, row, strict=True)) for row in rows])
    found = claims.hardly_matters(study, ("lambda_lm", "lambda_kl"), 3.5)
    assert [(one.sign, one.runs) for one in found] == [(-1, ("b",)), (1, ("g",)), (0, ("h",)), (1, ("d", "e"))]
    assert found[0].text == "lambda_lm × 3: −1.0 points of R@1 [−2.0, −0.1]"


def test_an_empty_study_measures_nothing_of_what_it_trains(study):
    table = claims_table(study)
    assert set(table.loc[table["notebook"] != "16_search", "verdict"]) == {"not measured"}
    assert "not measured" in claims_sentences(table)[0]
    with pytest.raises(SagaError, match="there is no study"):
        claims_table(study.parent / "none")


def test_contradicted_claims_are_named():
    table = claims_table(NOTEBOOKS, [Claim("A grows.", "Sec. 1", "–", "04_main_results", lambda _folder: [finding(-1)])])
    first, second = claims_sentences(table)
    assert first.startswith("Of 1 claims: 1 contradicted. Each verdict rests on") and second == "Contradicted: A grows."
    verdicts = ["reproduced on 1 of 4, else open", "reproduced", "reproduced over all, contradicted on x"]
    some = pd.DataFrame({"claim": "A.", "verdict": verdicts})
    assert claims_sentences(some)[0].startswith("Of 3 claims: 2 reproduced, 1 reproduced on some benchmarks. ")
    assert [verdict_kind(one) for one in some["verdict"]] == ["part", "good", "mixed"]


def test_benchmarks_that_contradict_each_other_are_mixed_whatever_their_mean():
    assert claims.verdict([finding(0, POOLED), finding(1), finding(1), finding(-1)]) == "mixed"
    assert claims.verdict([finding(0, POOLED), finding(1), finding(0)]) == "open at this scale"


def test_what_a_claim_compares_is_in_the_tables_it_reads(study):
    """Of claims read from the tables of notebooks 04 and 05: a pair that neither has would stand as not measured whatever is run."""
    base = methods.baseline_of("miniature", "pf")
    made = {*direct_pairs("miniature"), *parts("miniature"), *((method, base) for method in TABLE_RUNS["table2"].methods)}
    for claim in CLAIMS:
        options = getattr(claim.find, "keywords", {})
        if getattr(claim.find, "func", None) is compare and "tables" not in options:
            pair = tuple(claim_findings.named(study, options[side]) for side in ("method", "against"))
            assert pair in made, claim.says


def test_claims_name_notebooks_that_exist():
    for claim in CLAIMS:
        assert (NOTEBOOKS / f"{claim.notebook}.ipynb").is_file(), claim.notebook
        assert claim.says.endswith(".") and claim.where and claim.paper


def write_run(study, key, seed, hits, r4=0.9, nmi=0.5):
    folder = study / "runs" / key
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"config": make_config("miniature", "miniature_birds", "pf", seed).to_dict()}))
    evaluation = {"recall": {"1": float(np.mean(hits)), "4": r4}, "nmi": nmi, "map_at_r": 0.5}
    evaluation["hits_at_1"] = "".join("01"[int(hit)] for hit in hits)
    (folder / "evaluation.json").write_text(json.dumps(evaluation))


def test_metrics_of_whole_runs_are_compared_seed_by_seed(study):
    from scipy.stats import ttest_rel

    saga, pf = (0.95, 0.96, 0.99, 0.97), (0.93, 0.95, 0.94, 0.96)
    for name, levels in (("saga_pf", saga), ("pf", pf)):
        for seed, level in enumerate(levels):
            write_run(study, f"{name}{seed}", seed, [1], r4=level, nmi=level - 0.5)
    keys = {"saga_pf": "saga_pf3 saga_pf1 saga_pf0 saga_pf2", "pf": "pf0 pf1 pf2 pf3"}  # whatever the order
    save(study, "04_table1_miniature_birds_values", [{"method": name, "runs": runs} for name, runs in keys.items()])
    (found,) = claims.by_seed(study, "saga_pf", "pf", "R@4", "+.2f", " points")
    interval = ttest_rel(saga, pf).confidence_interval()
    assert found.text == f"+2.25 points [{100 * interval.low:+.2f}, {100 * interval.high:+.2f}]".replace("-", "−")
    assert found.sign == 0 and found.seeds == 4 and len(found.runs) == 8
    (turned,) = claims.by_seed(study, "pf", "saga_pf", "NMI", "+.4f", " NMI")
    assert turned.text.startswith("−0.0225 NMI [−")
    save(study, "04_table1_miniature_birds_values", [{"method": name, "runs": f"{name}0"} for name in keys])
    (one,) = claims.by_seed(study, "saga_pf", "pf", "R@4", "+.2f", " points")
    assert one.sign is None and one.text == "+2.00 points"  # one seed: no interval, no verdict
    save(study, "04_table1_miniature_birds_values", [{"method": "pf", "runs": "pf0"}])
    assert claims.by_seed(study, "saga_pf", "pf", "R@4", "+.2f", " points") == []


@pytest.mark.parametrize(("small", "full", "sign"), [(0.9, 0.3, 1), (0.3, 0.9, -1), (0.5, 0.5, 0)])
def test_a_small_embedding_is_compared_with_the_full_one(study, small, full, sign):
    rng = np.random.default_rng(0)
    for seed in (0, 1):
        write_run(study, f"small{seed}", seed, rng.uniform(size=200) < small)
        write_run(study, f"full{seed}", seed, rng.uniform(size=200) < full)
    row = {"dataset": "miniature_birds", "embedding_dim": 4, "method": "saga_pf", "runs": "small0 small1"}
    rows = [row, row | {"embedding_dim": 128, "runs": "x y"}, row | {"embedding_dim": 128, "method": "pf", "runs": "full0 full1"}]
    save(study, "07_table4_values", [*rows, row | {"method": "pf", "runs": ""}])
    (found,) = claims.small_against_full(study, "saga_pf", "pf")
    assert found.sign == sign and found.seeds == 2 and found.runs == ("small0", "small1", "full0", "full1")
    assert found.text.startswith("4 against 128 dimensions: ")
    save(study, "07_table4_values", rows[:2])
    assert claims.small_against_full(study, "saga_pf", "pf") == []


def test_the_last_layer_is_compared_with_the_best_before_it(study):
    names = ("tower", "layer", "attribute", "pointing", "pointing low", "pointing high")
    layers = {"worse": ((50, 48, 52), (60, 58, 62), (40, 38, 42)), "best": ((50, 48, 52), (40, 38, 42), (60, 58, 62)),
              "alike": ((50, 48, 52), (40, 38, 42), (51, 49, 53))}  # fmt: skip
    rows = [(tower, number, ALL_ATTRIBUTES, *row) for tower, of_tower in layers.items() for number, row in enumerate(of_tower)]
    save(study, "09_pointing_miniature_birds_values", [dict(zip(names, row, strict=True)) for row in rows])
    found = claims.last_layer_points_worse(study)
    assert [one.sign for one in found] == [1, -1, 0]
    assert found[0].text == "worse: best before the last ℓ = 1 60 % [58, 62], last ℓ = 2 40 % [38, 42]"


def test_claims_are_read_without_torch():
    code = "import sys, saga_study.findings.claims; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=NOTEBOOKS.parent).returncode == 0

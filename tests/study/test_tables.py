"""Tables: means, intervals, the paper's column, and everything that must not stand in one table."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from saga_lib.common.errors import SagaError
from saga_lib.common.paths import REPOSITORY
from saga_lib.records import Run
from saga_study.findings import metrics_page, samples, table_1, words
from saga_study.findings import paper as paper_numbers
from saga_study.methods import make_config

QUERIES = 200


def make_run(folder, method="pf", seed=0, level=0.5, profile="miniature", code="abc", benchmark="pix", **overrides):
    """Write the record of a finished run whose queries are hit with probability `level`, and return it."""
    config = make_config(profile, "miniature_birds", method, seed, **overrides)
    hits = np.random.default_rng([seed, int(1000 * level)]).uniform(size=QUERIES) < level
    recall = {str(k): float(min(1.0, hits.mean() + 0.05 * i)) for i, k in enumerate((1, 2, 4, 8))}
    folder = folder / f"{profile}-{method}-{seed}-{code}"
    folder.mkdir(parents=True)
    record = {"config": config.to_dict(), "inputs": {"benchmark": benchmark, "supervisor": "s"}, "code": code}
    (folder / "config.json").write_text(json.dumps(record))
    evaluation = {"recall": recall, "map_at_r": 0.25, "nmi": 0.6, "steps": config.steps, "seconds": 12.0}
    evaluation["hits_at_1"] = "".join("01"[int(hit)] for hit in hits)
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return Run(folder, config)


@pytest.fixture
def runs(tmp_path):
    """Three seeds of two methods, and the one run of the untrained row."""
    return {
        "pre-trained": [make_run(tmp_path, "pre-trained", level=0.3)],
        "pf": [make_run(tmp_path, "pf", seed, level=0.5) for seed in (0, 1, 2)],
        "saga_pf": [make_run(tmp_path, "saga_pf", seed, level=0.8) for seed in (2, 0, 1)],
    }


# --------------------------------------------------------------------------------------------------- numbers


def test_means_and_deviations_are_those_of_the_seeds(runs):
    table = table_1.main_table(runs, "pf").set_index("method")
    values = [100 * run.hits.mean() for run in runs["pf"]]
    assert table.loc["pf", "R@1"] == pytest.approx(np.mean(values))
    assert table.loc["pf", "R@1 std"] == pytest.approx(np.std(values, ddof=1))
    assert np.isnan(table.loc["pre-trained", "R@1 std"])  # one run has no deviation
    assert table.loc["pf", "MAP@R"] == pytest.approx(25) and table.loc["pf", "NMI"] == pytest.approx(0.6)
    assert list(table["row"]) == [1, 2, 3] and list(table["seeds"]) == [1, 3, 3]


def test_differences_are_to_the_baseline_and_have_an_interval(runs):
    table = table_1.main_table(runs, "pf").set_index("method")
    means = {method: 100 * np.mean([run.hits.mean() for run in group]) for method, group in runs.items()}
    saga = table.loc["saga_pf"]
    assert saga["difference"] == pytest.approx(means["saga_pf"] - means["pf"])
    assert 0 < saga["low"] < saga["difference"] < saga["high"]
    assert table.loc["pre-trained", "high"] < 0
    assert np.isnan(table.loc["pf", "difference"])


def test_every_row_names_its_notebook_and_runs(runs):
    table = table_1.main_table(runs, "pf")
    for _, row in table.iterrows():
        assert row["notebook"] == "04_main_results"
        assert row["runs"].split() == [run.key for run in sorted(runs[row["method"]], key=lambda r: r.config.seed)]


def test_conclusions_follow_the_intervals(runs, tmp_path):
    runs["pa"] = [make_run(tmp_path, "pa", seed, level=0.5) for seed in (0, 1, 2)]  # the same queries are hit as by pf
    told = " ".join(table_1.conclusions(table_1.main_table(runs, "pf"), "pf"))
    assert "SAGA (PF): +" in told and "above it" in told
    assert "pre-trained: −" in told and "below it" in told
    assert "PA: 0.0 [0.0, 0.0] points, not distinguishable from it" in told
    assert told.endswith("3 seeds: the intervals cover the choice of families of classes (queries, where there are none) and seeds.")


def test_an_interval_is_one_text_with_one_side():
    row = {"difference": 1.25, "low": -0.5, "high": 3.0, "gain": "-2.0", "gain low": "-3.04", "gain high": "-1"}  # of a CSV file
    row |= dict.fromkeys(("x", "x low", "x high"), "")
    interval, gain, nothing = (words.Interval.of(row, name) for name in ("difference", "gain", "x"))
    assert interval.text() == "+1.2 [−0.5, +3.0]" and gain.text(".2f", " points") == "−2.00 points [−3.04, −1.00]"
    assert words.Interval(-0.04, -2.0, 0.04).text() == "0.0 [−2.0, 0.0]" and words.signed(float("nan")) == "+nan"
    assert words.Interval(0.5).text(".1f", " %") == "0.5 %" and nothing.text() == words.points(None) == "–"
    assert [one.side() for one in (interval, gain, nothing, words.Interval(1.0))] == [0, -1, None, None]
    assert interval.side(-1) == 1 and interval.side(3.5) == -1
    assert gain.beside(interval) == -1 and interval.beside(gain) == 1 and interval.beside(interval) == 0 and gain.beside(nothing) is None
    assert words.Interval.of(interval.columns("gain"), "gain") == interval


def test_how_few_seeds_are_is_one_sentence():
    assert words.seed_remark([1, 1]) == (
        "One seed: the intervals cover the choice of families of classes (queries, where there are none) only, "
        "not the variation between seeds."
    )
    narrow = words.seed_remark([3, 5, 0], "images", are_widened=False)
    assert narrow.startswith("3 to 5 seeds: the intervals cover the choice of images and seeds; with fewer")
    assert words.seed_remark([1, 3], where=", here").startswith("1 to 3 seeds, here: ") and "too narrow" not in words.seed_remark([5])


def test_query_agreement_adds_up_to_all_queries(runs):
    agreement = samples.query_agreement(runs, "saga_pf", "pf")
    assert list(agreement["seed"]) == [0, 1, 2]
    assert (agreement.drop(columns="seed").sum(axis=1) == QUERIES).all()


# -------------------------------------------------------------------------------------------------- refusals


def refused(runs, match, **options):
    with pytest.raises(SagaError, match=match):
        table_1.main_table(runs, "pf", **options)


def test_smoke_results_are_refused_in_another_study(runs, tmp_path):
    runs["pf"][1] = make_run(tmp_path, "pf", 1, profile="smoke")
    refused(runs, r"smoke-pf-1-abc .*profile smoke.*miniature")
    refused({"pf": [make_run(tmp_path, "pf", 5, profile="smoke")]}, "is of profile smoke", profile="miniature")


def test_a_smoke_study_may_have_its_own_table(tmp_path):
    runs = {"pf": [make_run(tmp_path, "pf", profile="smoke")], "pa": [make_run(tmp_path, "pa", profile="smoke")]}
    assert len(table_1.main_table(runs, "pf", profile="smoke")) == 2


def test_mixed_code_and_data_versions_are_refused(runs, tmp_path):
    runs["pf"][0] = make_run(tmp_path, "pf", 0, code="old")
    refused(runs, "more than one code version.*old")
    runs["pf"][0] = make_run(tmp_path / "new", "pf", 0, benchmark="other")
    refused(runs, "more than one data version.*other")


def test_missing_and_doubled_seeds_are_refused_by_name(runs):
    complete = list(runs["saga_pf"])
    runs["saga_pf"] = complete[:2]
    refused(runs, "saga_pf on miniature_birds lacks seed 1")
    refused({"pf": runs["pf"]}, "pf on miniature_birds lacks seed 3, 4", seeds=(0, 1, 2, 3, 4))
    runs["saga_pf"] = [*complete, complete[0]]
    refused(runs, "stands twice")


def test_other_misfits_are_refused(runs, tmp_path):
    refused(runs | {"pa": []}, "no run of pa")
    refused({}, "no runs")
    refused({"saga_pf": runs["saga_pf"]}, "compares with pf")
    runs["pf"][2] = make_run(tmp_path / "new", "pf", 2, steps=7)
    refused(runs, "more than the seed")


# -------------------------------------------------------------------------------------- the paper beside us


def test_the_papers_column_repeats_the_paper():
    paper = paper_numbers.paper_column(1, "cub200")
    assert paper.loc["SAGA (PF)", "R@1"] == 87.9 and paper.loc["SAGA (PF)", "R@1 std"] == 0.3
    assert np.isnan(paper.loc["PF", "R@1 std"])
    both = paper_numbers.paper_column((1, 3), "miniature_birds")  # birds stand beside CUB
    assert both.loc["MS", "R@1"] == 77.8 and both.loc["MS", "source"] == "Table 3"
    assert both.loc["PF", "source"] == "Table 1"
    with pytest.raises(SagaError, match="did you mean 'cub200'"):
        paper_numbers.paper_column(1, "cub20")


def test_no_column_mixes_scales(runs):
    shown = table_1.display_table(table_1.main_table(runs, "pf"), "miniature_birds", "miniature", "pf")
    for name in shown.columns[2:-1]:
        assert ("paper (full scale, CUB)" in name) != ("ours (miniature)" in name)
    row = shown.set_index("method").loc["SAGA (PF)"]
    assert row["R@1 % paper (full scale, CUB)"] == "87.9 ± 0.3"
    assert row["R@1 % ours (miniature)"].count("±") == 1
    assert row["R@1 − PF in points [95 %] ours (miniature)"].startswith("+")
    assert shown.set_index("method").loc["PF", "R@1 − PF in points [95 %] ours (miniature)"] == "–"
    assert shown.map(str).map(lambda text: "nan" not in text).all(axis=None)


def test_details_name_run_folders(runs):
    details = table_1.detail_table(table_1.main_table(runs, "pf"), "miniature")
    assert runs["pf"][1].key in details.set_index("method").loc["PF", "run folders"]
    assert isinstance(details, pd.DataFrame) and "MAP@R % ours (miniature)" in details


def test_every_metric_that_training_writes_is_explained():
    source = (REPOSITORY / "saga_lib" / "training.py").read_text()
    body = source[source.index("def run_step") : source.index("def evaluate")]
    written = set(re.findall(r'metrics\["(\w+)"\] =', body)) | set(re.findall(r'"((?:loss|grad|seconds)_\w+)"', source))
    assert written <= set(metrics_page.LOGGED_METRICS), written - set(metrics_page.LOGGED_METRICS)
    assert list(metrics_page.metrics_page(["step", "loss_dml"])["metric"]) == ["step", "loss_dml"]
    with pytest.raises(SagaError, match="loss_new is logged but not explained"):
        metrics_page.metrics_page(["loss_new"])

"""Gradient ratios in tables: from a run's record or, for older runs, from its steps."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_tables import make_run

from saga_lib.config import RunConfig
from saga_lib.records import Run
from saga_study.findings import gradients, table_1
from saga_study.methods import DML_SETTINGS, PROFILES, make_config
from saga_study.resolving import open_session


def with_record(run, **evaluation):
    path = run.folder / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | evaluation))
    return Run(run.folder, run.config)


def with_steps(run, rows):
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Run(run.folder, run.config)


STEPS = [
    {"step": n + 1, "grad_dml": 0.5, "grad_lm": 0.5 * ratio, "grad_total": total, "contributing_pairs": pairs}
    for n, (ratio, total, pairs) in enumerate([(1, 0.9, 16), (2, 1.1, 4), (3, 2.0, 16), (4, 0.5, 8), (5, 0.2, 0), (40, 0.3, 16)])
]


def test_columns_are_those_of_the_record_and_else_of_the_steps(tmp_path):
    record = {"ratio_lm_start": 0.5, "ratio_lm_median": 2.0, "ratio_reading_start": 1.0, "ratio_reading_median": 1.0, "clipped": 0.25}
    new = with_record(make_run(tmp_path, "saga_pf", 0), gradients=record | {"grad_over_eps": 70.0}, token_drift=0.04)
    row = gradients.gradient_columns([new])
    assert (row["ratio start"], row["ratio median"], row["clipped"]) == (1.5, 3.0, 0.25)
    assert (row["grad over eps"], row["token drift"]) == (70, 0.04) and np.isnan(row["K reached"])
    old = with_steps(make_run(tmp_path, "saga_pf", 1, contributing_pairs=16, balance_gradients=False), STEPS)
    row = gradients.gradient_columns([old])
    assert old.config.contributing_pairs == 16 and old.config.max_grad_norm == 1
    assert row["ratio start"] == 3 and row["ratio median"] == 3.5 and row["clipped"] == pytest.approx(2 / 6)
    assert row["K reached"] == 0.5 and row["contributing pairs"] == 10 and np.isnan(row["token drift"])
    assert gradients.gradient_columns([new, old])["ratio median"] == 3.25
    balanced = with_steps(make_run(tmp_path, "saga_pf", 2, balance_gradients=True, lambda_lm=0.3), STEPS)
    assert gradients.gradient_columns([balanced])["ratio median"] == pytest.approx(0.3)
    assert all(np.isnan(value) for value in gradients.gradient_columns([make_run(tmp_path, "pre-trained")]).values())


def test_what_is_outside_of_an_order_of_magnitude_is_marked_and_said(tmp_path):
    of_strong = {"ratio_lm_start": 5.0, "ratio_lm_median": 12.0, "k_reached": 0.5, "contributing_pairs": 6.0}
    of_weak = {"ratio_lm_start": 0.01, "ratio_lm_median": 0.2, "k_reached": 1.0, "contributing_pairs": 16.0}
    strong, weak = (with_record(make_run(tmp_path, m), gradients=g) for m, g in (("saga_pf", of_strong), ("saga_pa", of_weak)))
    table = table_1.main_table({"pf": [make_run(tmp_path, "pf")], "saga_pf": [strong], "saga_pa": [weak]}, "pf")
    shown = gradients.gradient_table(gradients.joined({"birds": table})).set_index("method")
    assert list(shown.index) == ["SAGA (PF)", "SAGA (PA)"], "PF has no steps on record here"
    assert list(shown["|g_LM| / |g_DML|, median"]) == ["12 !", "0.2"] and shown.loc["SAGA (PA)", "|g_LM| / |g_DML|, start"] == "0.01 !"
    assert shown.loc["SAGA (PF)", "steps that reach K"] == "50 %" and shown.loc["SAGA (PF)", "dataset"] == "birds"
    first, second = gradients.sentences(table)
    assert "SAGA (PF): its gradient is 12 times" in first and "50 % of the steps reach K" in second and "6.0 on average" in second
    assert len(gradients.gradient_table(pd.DataFrame({"label": ["x"]} | {name: [np.nan] for name in gradients.COLUMNS}))) == 1


@pytest.mark.parametrize("loss", ["pf", "pa", "ms", "infonce"])
def test_at_the_papers_weights_the_gradients_start_within_an_order_of_magnitude(loss):
    """Whatever the loss; the weights of the profile, on the miniature models."""
    own = PROFILES["paper"] | DML_SETTINGS["paper"].get(loss, {})
    names = ("balance_gradients", "lambda_dml", "lambda_lm", "lambda_kl", "dml_options", "lr_proxies", "anchor")
    chosen = {name: own.get(name, RunConfig.__dataclass_fields__[name].default) for name in names}
    small = {"images_per_class": 4, "pairs_per_wave": 8, "max_waves": 4, "evaluate_on": "validation"}
    config = make_config("miniature", "miniature_birds", f"saga_{loss}", 0, audit_every=0, **small | chosen)
    metrics = open_session(config).run_step()
    assert 0.1 < metrics["ratio_lm"] < 10 and metrics["grad_over_eps"] > 10
    if loss == "pf":  # its mean over proxies falls with their number
        mean = replace(config, lambda_dml=1.0, dml_options={"reduction": "mean"})
        assert not 0.5 < open_session(mean).run_step()["ratio_lm"] / metrics["ratio_lm"] < 2

"""Tables 2-4: numbers against an independent computation, each row against its own baseline, empty cells, and what must not be mixed."""

import json
from dataclasses import replace

import numpy as np
import pytest
from test_bootstrap import students_factor
from test_tables import QUERIES, make_run

from saga_lib.common.errors import SagaError
from saga_lib.records import Run
from saga_study import methods
from saga_study.design import tables
from saga_study.design.cells import Cell
from saga_study.design.tables import WITH_FULL
from saga_study.findings import differences, figures, tables_2_to_5, words
from saga_study.findings.differences import ALL_LOSSES, losses, parts
from saga_study.findings.samples import POOLED
from saga_study.methods import METHOD_LABELS, METHODS, make_config

BIRDS, AIRCRAFT = "miniature_birds", "miniature_aircraft"
LOSSES = {("saga_ms", "ms"): "MS", ("saga_pa", "pa"): "PA", ("saga_pf", "pf"): "PF", ("saga_infonce", "infonce"): "InfoNCE"}


@pytest.fixture(autouse=True)
def no_loss_is_anchored(monkeypatch):
    """What the search chose does not decide here."""
    monkeypatch.setitem(methods.ANCHORED, "miniature", ())
    assert losses("miniature") == LOSSES


def cell(folder, method, dataset=BIRDS, level=0.5, seeds=(0, 1), **settings):
    """Return a cell whose runs hit queries with probability `level`, drawn anew for every method, benchmark and size."""
    config = replace(make_config("miniature", dataset, method, 0, **settings), seed=0)
    runs = []
    for seed in seeds:
        run = make_run(folder / dataset / str(config.embedding_dim), method, seed, level=level)
        rng = np.random.default_rng([seed, len(method), *map(ord, method + dataset), config.embedding_dim])
        hits = rng.uniform(size=QUERIES) < level
        evaluation = json.loads((run.folder / "evaluation.json").read_text())
        evaluation["recall"] |= {"1": float(hits.mean()), "4": float(min(1, hits.mean() + 0.1))}
        evaluation["hits_at_1"] = "".join("01"[int(hit)] for hit in hits)
        (run.folder / "evaluation.json").write_text(json.dumps(evaluation))
        runs.append(Run(run.folder, replace(config, seed=seed)))
    return Cell(config, tuple(runs))


def empty(method, dataset=BIRDS, why=WITH_FULL, **settings):
    return Cell(make_config("miniature", dataset, method, 0, **settings), (), why)


def hits(one):
    return np.stack([run.hits for run in one.runs]).astype(float)


def only(table, **wanted):
    for name, value in wanted.items():
        table = table[table[name] == value]
    assert len(table) == 1, (wanted, table)
    return table.iloc[0]


def slow_bootstrap(scores_by_benchmark, samples=2000):
    """Draw units and seeds of each benchmark, one resample at a time, average mean scores (S, U), and widen as Student's t."""
    rng, means = np.random.default_rng(1), []
    for _ in range(samples):
        drawn = []
        for scores in scores_by_benchmark:
            seeds, queries = (rng.integers(size, size=size) for size in scores.shape)
            drawn.append(scores[seeds][:, queries].mean())
        means.append(np.mean(drawn))
    centre = np.mean([scores.mean() for scores in scores_by_benchmark])
    factor = students_factor([(scores, np.zeros_like(scores)) for scores in scores_by_benchmark], np.std(means))
    return 100 * (centre + factor * (np.quantile(means, [0.025, 0.975]) - centre))


# ------------------------------------------------------------------------------------------------ numbers


def test_each_row_is_compared_with_its_own_baseline(tmp_path):
    levels = {"ms": 0.3, "pa": 0.4, "pf": 0.5, "infonce": 0.6, "saga_ms": 0.8, "saga_pa": 0.6, "saga_pf": 0.5, "saga_infonce": 0.3}
    cells = [cell(tmp_path, method, name, level) for name in (BIRDS, AIRCRAFT) for method, level in levels.items()]
    by_key = {(one.config.method, one.config.dataset): one for one in cells}
    table = differences.over_losses(cells)
    for (method, bare), label in LOSSES.items():
        scores = [hits(by_key[method, name]) - hits(by_key[bare, name]) for name in (BIRDS, AIRCRAFT)]
        for name, own in zip((BIRDS, AIRCRAFT), scores, strict=True):
            row = only(table, label=label, benchmark=name)
            assert row["difference"] == pytest.approx(100 * own.mean()) and row["against"] == bare and row["seeds"] == 2
            assert [row["low"], row["high"]] == pytest.approx(slow_bootstrap([own]), abs=1.0)
        pooled = only(table, label=label, benchmark=POOLED)
        assert pooled["difference"] == pytest.approx(100 * np.mean([own.mean() for own in scores]))
        assert [pooled["low"], pooled["high"]] == pytest.approx(slow_bootstrap(scores), abs=1.0)


def test_all_losses_share_the_queries_of_a_benchmark(tmp_path):
    """Losses that gain on the same queries are no more certain together than one of them is alone."""
    one = {method: cell(tmp_path, method, level=level) for method, level in (("pf", 0.5), ("saga_pf", 0.6))}
    cells = []
    for method, bare in LOSSES:
        for name, of in ((method, "saga_pf"), (bare, "pf")):
            config = make_config("miniature", BIRDS, name, 0)
            cells.append(Cell(config, tuple(Run(run.folder, replace(config, seed=run.config.seed)) for run in one[of].runs)))
    table = differences.over_losses(cells)
    alone, together = only(table, label="PF", benchmark=BIRDS), only(table, label=ALL_LOSSES, benchmark=BIRDS)
    assert together[["difference", "low", "high"]].tolist() == pytest.approx(alone[["difference", "low", "high"]].tolist())
    assert not (table["benchmark"] == POOLED).any()  # one benchmark has nothing to pool


def test_a_benchmark_that_lacks_a_loss_is_left_out_of_all_losses(tmp_path):
    cells = [cell(tmp_path, method) for pair in LOSSES for method in pair]
    cells += [cell(tmp_path, method, AIRCRAFT) for _, method in LOSSES] + [cell(tmp_path, "saga_pf", AIRCRAFT)]
    cells += [empty(method, AIRCRAFT) for method, _ in LOSSES if method != "saga_pf"]
    table = differences.over_losses(cells)
    assert list(table.loc[table["label"] == ALL_LOSSES, "benchmark"]) == [BIRDS]
    assert set(table.loc[table["benchmark"] == POOLED, "label"]) == {"PF"}  # the one pair that both have
    lacking = only(table, label="MS", benchmark=AIRCRAFT)
    assert np.isnan(lacking["difference"]) and lacking["absent"] == WITH_FULL and lacking["seeds"] == 0


def test_parts_differ_in_one_thing_and_take_the_run_without_seed(tmp_path):
    cells = [cell(tmp_path, method, level=0.6) for method in ("pf", "pf_attention", "pf_grpo", "pf_kl", "saga_pf", "grpo_alone")]
    cells.append(cell(tmp_path, "pre-trained", level=0.3, seeds=(0,)))
    table = differences.differences(cells, parts("miniature"))
    by_method = {one.config.method: one for one in cells}
    for row in table.itertuples():
        expected = hits(by_method[row.method]).mean() - hits(by_method[row.against]).mean()
        assert row.difference == pytest.approx(100 * expected) and row.seeds == 2
    assert {(row.method, row.against) for row in table.itertuples()} == {pair for pair in parts("miniature") if {*pair} <= set(by_method)}
    assert only(table, method="grpo_alone")["low"] > 0


def test_every_part_names_methods_that_differ_in_little():
    for pair in parts("miniature"):
        assert set(pair) <= set(METHODS) & set(tables.TABLE_RUNS["table2"].methods)
    in_one_thing = {
        ("pf_saga_rate", "pf"): {"lr_tower"}, ("pf_attention", "pf_saga_rate"): {"pooler"},
        ("pf_grpo", "pf_attention"): {"language_signal", "lambda_lm"},
        ("pf_kl", "pf_attention"): {"language_signal", "lambda_lm", "lambda_kl"},
        ("saga_pf", "pf_kl"): {"lambda_lm"}, ("saga_pf", "pf_grpo"): {"lambda_kl"},
        ("saga_pf", "pf_attention"): {"language_signal", "lambda_lm", "lambda_kl"},
        ("saga_pf", "pf_saga_rate"): {"language_signal", "lambda_lm", "lambda_kl", "pooler"},
        ("saga_pf", "saga_shuffled_in_group"): {"signal_control"}, ("pf_grpo", "pf_grpo_generic"): {"prompt", "supervisor"},
        ("pf_grpo_taught", "pf_grpo_generic"): {"prompt"},
    }  # fmt: skip
    for pair, fields in in_one_thing.items():
        one, other = (make_config("miniature", BIRDS, method, 0) for method in pair)
        assert {name for name in vars(one) if getattr(one, name) != getattr(other, name)} - {"method", "audit_every"} == fields, pair
    tuned_each = {("pf_anchor", "pf"), ("saga_pf", "pf"), ("saga_pf", "pf_long"), ("grpo_alone", "pre-trained")}  # as notebook 05 says
    assert {*parts("miniature")} == {*in_one_thing} | tuned_each
    alone = make_config("miniature", BIRDS, "grpo_alone", 0)
    assert (alone.lambda_dml, alone.lambda_kl, alone.pooler, alone.embedding_dim) == (0.0, 0.0, "mean", 0) and alone.lambda_lm > 0
    for bare in ("pa", "ms", "infonce"):
        saga, alone = (make_config("miniature", BIRDS, name, 0) for name in (f"saga_{bare}", bare))
        assert saga.dml_loss == bare and (saga.lr_pooler, saga.dml_options) == (alone.lr_pooler, alone.dml_options)


def test_signals_on_an_anchored_loss_are_compared_with_it(tmp_path, monkeypatch):
    monkeypatch.setitem(methods.ANCHORED, "miniature", ("pf", "infonce"))
    assert losses("miniature", "contrast")["contrast_infonce", "infonce_anchor"] == "InfoNCE, anchored"
    assert {("saga_pf", "pf_anchor"), ("pf_grpo", "pf_anchor"), ("pf_anchor", "pf"), ("saga_pf", "pf_kl")} <= set(parts("miniature"))
    assert not {("saga_pf", "pf"), ("pf_grpo", "pf_attention")} & set(parts("miniature"))
    for pair in parts("miniature"):
        assert set(pair) <= set(tables.TABLE_RUNS["table2"].methods), pair
    cells = [cell(tmp_path, method, level=level) for method, level in (("pf", 0.3), ("pf_anchor", 0.5), ("saga_pf", 0.8))]
    table = differences.over_losses(cells)
    row, by_method = only(table, label="PF, anchored"), {one.config.method: one for one in cells}
    assert row["difference"] == pytest.approx(100 * (hits(by_method["saga_pf"]) - hits(by_method["pf_anchor"])).mean())
    values = differences.cell_table(cells, "06")
    shown = tables_2_to_5.display_losses(values, table, "miniature").set_index("loss").loc["PF, anchored"]
    assert shown["R@1 %, bare → SAGA, paper (full scale, CUB)"] == "81.6 → 87.9"
    assert shown["R@1 % (seeds) loss, birds, ours (miniature)"] == words.measured(values.iloc[1])


def test_a_gain_at_a_small_size_is_compared_with_the_gain_at_full_size(tmp_path):
    levels = {(128, "pf"): 0.5, (128, "saga_pf"): 0.7, (4, "pf"): 0.3, (4, "saga_pf"): 0.32}
    cells = [cell(tmp_path, method, level=level, embedding_dim=size) for (size, method), level in levels.items()]
    cells.append(cell(tmp_path, "pre-trained", level=0.2, seeds=(0,)))  # has no projection: stands at the full size
    by_key = {(differences.size_of(one, cells), one.config.method): one for one in cells}
    assert (128, "pre-trained") in by_key
    gains = differences.differences(cells, {("saga_pf", "pf"): "SAGA − PF"})
    own = {size: hits(by_key[size, "saga_pf"]) - hits(by_key[size, "pf"]) for size in (128, 4)}
    for size in own:
        assert only(gains, embedding_dim=size)["difference"] == pytest.approx(100 * own[size].mean())
    change = only(differences.gain_by_size(cells), embedding_dim=4)
    assert change["difference"] == pytest.approx(100 * (own[4] - own[128]).mean())
    assert [change["low"], change["high"]] == pytest.approx(slow_bootstrap([own[4] - own[128]]), abs=1.0)
    told = tables_2_to_5.size_sentences(gains, differences.gain_by_size(cells))
    assert "less than at full size" in told[1] and "full size" not in told[0]


def test_cells_hold_means_deviations_and_their_origin(tmp_path):
    one = cell(tmp_path, "pf", seeds=(2, 0, 1))
    row = differences.cell_table([one], "05_loss_components").iloc[0]
    values = [100 * run.evaluation["recall"]["1"] for run in one.runs]
    assert row["R@1"] == pytest.approx(np.mean(values)) and row["R@1 std"] == pytest.approx(np.std(values, ddof=1))
    assert row["seeds"] == 3 and row["notebook"] == "05_loss_components"
    assert row["runs"].split() == [run.key for run in sorted(one.runs, key=lambda run: run.config.seed)]
    assert words.measured(row) == f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f} (3)"


# --------------------------------------------------------------------------------------------- as it is shown


def test_cells_without_runs_are_drawn_and_say_why(tmp_path):
    waits = tables.NOT_YET
    cells = [cell(tmp_path, method, level=0.6, seeds=(0,)) for method in ("pf", "pf_grpo", "saga_pf")]
    cells += [empty("pf_long"), empty("pf_grpo_generic", why=waits), empty("saga_pf", AIRCRAFT), cell(tmp_path, "pf", AIRCRAFT, seeds=(0,))]
    values = differences.cell_table(cells, "05_loss_components")
    to_pf = differences.differences(cells, {(method, "pf"): method for method in dict.fromkeys(values["method"]) if method != "pf"})
    shown = tables_2_to_5.display_components(values, to_pf, "miniature").set_index("method")
    ours = "R@1 % (seeds) birds, ours (miniature)"
    assert shown.loc[METHOD_LABELS["pf_long"], ours] == WITH_FULL and shown.loc["PF + GRPO (generic prompt)", ours] == waits
    assert shown.loc["PF", ours].endswith("(1)") and "±" not in shown.loc["PF", ours]
    assert shown.loc["SAGA (PF)", "R@1 % (seeds) aircraft, ours (miniature)"] == WITH_FULL
    assert shown.loc["SAGA (PF)", "R@1 − PF in points [95 %] aircraft, ours (miniature)"] == "–"
    assert shown.loc["PF + GRPO", "R@1 % paper (full scale, CUB)"] == "87.0"
    assert shown.loc["SAGA (PF)", "R@1 % paper (full scale, Aircraft)"] == "83.5"
    for name in shown.columns[1:]:
        assert ("paper (full scale" in name) != ("ours (miniature)" in name), name
    assert not shown.map(str).map(lambda text: "nan" in text).any(axis=None)
    table = differences.differences(cells, parts("miniature"))
    told = " ".join(tables_2_to_5.difference_sentences(table))
    assert "One seed: the intervals cover the choice of families of classes" in told
    assert f"Not here, {WITH_FULL}: " in told and f"Not here, {waits}: " in told
    assert not tables_2_to_5.display_parts(table, "miniature").map(str).map(lambda text: "nan" in text).any(axis=None)
    assert len(figures.interval_rows(table, "parts").axes) == 1


def test_table_3_prints_the_papers_pairs(tmp_path):
    cells = [cell(tmp_path, method, seeds=(0,)) for pair in LOSSES for method in pair]
    values, table = differences.cell_table(cells, "06_dml_agnostic"), differences.over_losses(cells)
    shown = tables_2_to_5.display_losses(values, table, "miniature").set_index("loss")
    assert list(shown["R@1 %, bare → SAGA, paper (full scale, CUB)"]) == ["77.8 → 86.1", "79.5 → 87.3", "81.6 → 87.9", "–", "–"]
    assert list(shown.index) == [*LOSSES.values(), ALL_LOSSES]
    assert shown.loc[ALL_LOSSES, "R@1 % (seeds) SAGA, birds, ours (miniature)"] == "–"
    assert shown["SAGA − loss in points [95 %] birds, ours (miniature)"].str.contains(r"\[").all()
    assert len(figures.interval_rows(table, "gains").axes) == 1


def test_table_4_stands_beside_the_same_fraction_of_the_papers_size(tmp_path):
    cells = [cell(tmp_path, method, seeds=(0,), embedding_dim=size) for size in (128, 16, 4) for method in ("pf", "saga_pf")]
    cells[-1] = empty("saga_pf", embedding_dim=4)
    values = differences.cell_table(cells, "07_embedding_size")
    gains = differences.differences(cells, {("saga_pf", "pf"): "SAGA − PF"})
    shown = tables_2_to_5.display_sizes(values, gains, "miniature", tables.EMBEDDING_DIMS["paper"])
    assert list(shown["D_e paper"]) == ["4096"] * 2 + ["512"] * 2 + ["128"] * 2
    assert list(shown["of full"]) == ["1"] * 2 + ["1/8"] * 2 + ["1/32"] * 2
    assert list(shown["R@1 % paper (full scale, CUB)"]) == ["81.6", "87.9", "79.4", "86.5", "78.3", "83.8"]
    assert list(shown["R@4 % paper (full scale, CUB)"])[2:4] == ["91.8", "93.1"]
    assert shown["R@1 % (seeds) birds, ours (miniature)"].iloc[-1] == WITH_FULL
    assert len(figures.size_curves(values, gains, "sizes").axes) == 2


def test_a_table_of_which_nothing_is_known_is_drawn_too():
    cells = [empty(method) for pair in LOSSES for method in pair]
    table = differences.over_losses(cells)
    assert tables_2_to_5.difference_sentences(table)[0] == "No difference is known yet."
    assert len(tables_2_to_5.display_losses(differences.cell_table(cells, "06"), table, "miniature")) == len(LOSSES)
    assert len(figures.interval_rows(table, "nothing").axes) == 1


# ---------------------------------------------------------------------------------------------------- refusals


def test_what_must_not_stand_in_one_table_is_refused(tmp_path):
    good = cell(tmp_path, "pf")
    old = cell(tmp_path / "old", "saga_pf")
    for run in old.runs:
        record = json.loads((run.folder / "config.json").read_text())
        (run.folder / "config.json").write_text(json.dumps(record | {"code": "old"}))
    with pytest.raises(SagaError, match="more than one code version"):
        differences.differences([good, old], parts("miniature"))
    apart = Cell(replace(old.config, dataset=AIRCRAFT), tuple(Run(run.folder, replace(run.config, dataset=AIRCRAFT)) for run in old.runs))
    with pytest.raises(SagaError, match="more than one code version"):
        differences.cell_table([good, apart], "05")
    with pytest.raises(SagaError, match="lacks seed 1"):
        differences.cell_table([good, cell(tmp_path / "few", "saga_pf", seeds=(0,))], "05")

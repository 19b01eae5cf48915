"""The notebooks of the study: what each needs and takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saga_study import paths


@dataclass(frozen=True)
class Notebook:
    """A notebook of the study: the tables and figures whose runs it needs, and how long it takes by itself."""

    name: str
    minutes: dict[str, float]  # by profile, without the runs it needs
    needs: tuple[str, ...] = ()  # keys of TABLE_RUNS
    takes: tuple[str, ...] = ()  # parameters besides STUDY and PROFILE, out of TABLE_PARAMETERS; SEEDS is a dict by dataset
    sums_up: bool = False  # reads the tables and figures of all others
    is_by_seed: bool = False  # measures with the weights of every seed; `minutes` are for one

    @property
    def number(self) -> str:
        return self.name.split("_")[0]

    @property
    def path(self) -> Path:
        return paths.NOTEBOOKS / f"{self.name}.ipynb"


TABLE_PARAMETERS = ("DATASETS", "METHODS", "SEEDS", "FULL")
NOTEBOOKS = (
    Notebook("00_miniature_world", {"smoke": 0.5, "miniature": 0.5, "paper": 0.5}),
    Notebook("01_data_pairing", {"smoke": 0.3, "miniature": 0.3, "paper": 2.0}),
    Notebook("02_attribute_vocabularies", {"smoke": 0.3, "miniature": 0.2, "paper": 1.0}),
    Notebook("03_grpo_training", {"smoke": 0.6, "miniature": 1.2, "paper": 25.0}, needs=("training_curves",)),
    Notebook("04_main_results", {"smoke": 0.5, "miniature": 1.0, "paper": 1.0}, needs=("table1",), takes=TABLE_PARAMETERS),
    Notebook(
        "04b_choosing_benchmarks", {"smoke": 0.3, "miniature": 0.5, "paper": 0.3}, needs=("gates", "search", "lengths"),
        takes=("DATASETS", "FULL"),
    ),
    Notebook("05_loss_components", {"smoke": 0.3, "miniature": 0.4, "paper": 0.5}, needs=("table2",), takes=TABLE_PARAMETERS),
    Notebook("06_dml_agnostic", {"smoke": 0.3, "miniature": 0.2, "paper": 0.4}, needs=("table3",), takes=TABLE_PARAMETERS),
    Notebook("07_embedding_size", {"smoke": 0.3, "miniature": 0.2, "paper": 0.4}, needs=("table4",), takes=TABLE_PARAMETERS),
    Notebook("08_backbone_transfer", {"smoke": 0.3, "miniature": 0.2, "paper": 0.3}, needs=("table5",), takes=TABLE_PARAMETERS),
    Notebook("09_attention", {"smoke": 0.5, "miniature": 1.5, "paper": 20.0}, needs=("figure3",), takes=TABLE_PARAMETERS, is_by_seed=True),
    Notebook("10_gallery", {"smoke": 0.4, "miniature": 0.8, "paper": 15.0}, needs=("figure5",), takes=TABLE_PARAMETERS, is_by_seed=True),
    Notebook("11_sensitivity", {"smoke": 0.3, "miniature": 0.3, "paper": 0.3}, needs=("sensitivity",), takes=("FULL",)),
    Notebook(
        "12_gradient_audit", {"smoke": 0.4, "miniature": 0.9, "paper": 0.5}, needs=("gradient_audit",), takes=("DATASETS", "SEEDS", "FULL"),
    ),
    Notebook("13_vocabulary_discovery", {"smoke": 0.4, "miniature": 0.6, "paper": 0.7}, takes=("FULL",)),
    Notebook("14_readiness_check", {"smoke": 0.3, "miniature": 0.3, "paper": 0.3}),
    Notebook("15_your_dataset", {"smoke": 0.5, "miniature": 0.7, "paper": 1.0}),
    Notebook("16_search", {"smoke": 0.3, "miniature": 0.3, "paper": 0.3}),
    Notebook("17_planner", {"smoke": 0.2, "miniature": 0.2, "paper": 0.2}),
    Notebook(
        "18_few_shot", {"smoke": 0.7, "miniature": 1.3, "paper": 60.0}, needs=("few_shot",), takes=TABLE_PARAMETERS, is_by_seed=True,
    ),
    Notebook("19_words", {"smoke": 0.8, "miniature": 0.8, "paper": 0.2}, needs=("words",), takes=TABLE_PARAMETERS, is_by_seed=True),
    Notebook("20_signals", {"smoke": 0.5, "miniature": 2.0, "paper": 2.0}, needs=("signals", "mediation"), takes=TABLE_PARAMETERS),
    Notebook("21_when_does_it_help", {"smoke": 0.2, "miniature": 1.0, "paper": 0.2}, needs=("map",)),
    Notebook("99_report", {"smoke": 0.3, "miniature": 0.3, "paper": 0.5}, sums_up=True),
)  # fmt: skip

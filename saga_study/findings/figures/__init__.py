"""All figures of the study: call `figures.recall_dots(...)`, whichever file it is in."""

from saga_study.findings.figures.answers import (
    PRETRAINING_LOSSES,
    answer_html,
    difference_histogram,
    pretraining_curves,
    readiness_bars,
    reading_bars,
    reward_histogram,
    rollout_html,
    rollout_table,
    slot_bars,
    slot_table,
    token_spans,
)
from saga_study.findings.figures.curves import audit_curves, plan_bars, training_curves
from saga_study.findings.figures.few_shot import gains_by_labels
from saga_study.findings.figures.overlays import (
    OverlayRow,
    attention_overlays,
    overlay_grid,
    patch_maps,
    patch_norms,
    pointing_dots,
    pooler_overlays,
)
from saga_study.findings.figures.phrases import word_dots, word_gallery
from saga_study.findings.figures.pictures import (
    Picture,
    attribute_regions,
    image_grid,
    neighbour_gallery,
    pair_grid,
    query_gallery,
    retrieval_gallery,
    show_image,
)
from saga_study.findings.figures.results import answer_forest, interval_rows, recall_curves, recall_dots, size_curves
from saga_study.findings.figures.settings import gain_by_supervisor, length_curves, search_dots, sensitivity_panels
from saga_study.findings.figures.signals import mediation_chain, signal_costs, world_map
from saga_study.findings.figures.style import BLACK, html_table, section_tint

"""The meaning of every metric that training logs."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from saga_lib.common.errors import SagaError

# Legend: K contributing pairs, G rollouts, T all their tokens, r reward, A advantage; θ tower, φ pooler, ψ frozen.
LOGGED_METRICS: dict[str, tuple[str, str]] = {
    "step": ("s", "optimizer steps done, this one included"),
    "steps": ("S", "optimizer steps of the whole run"),
    "loss_dml": ("L_DML, summed over the step's micro-batches", "its scale depends on the loss chosen"),
    "loss_lm": ("L_GRPO = −(1/|T|) Σ_g Σ_t A_g log π_θ(y_t)", "no measure of progress: only its gradient is meant"),
    "loss_anchor": ("L_anchor, summed over the step's micro-batches", "divergence from the teacher's neighbourhoods, nats"),
    "loss_reading": ("the loss on what ψ reads from the images", "of contrast: chance is the logarithm of the batch"),
    "loss_kl": ("mean over r = 1 answers of KL(ᾱ_a‖β_a) + KL(ᾱ_b‖β_b)", "nats; 0 when the pooler looks where ψ looks"),
    "grad_dml": ("‖λ_dml ∂L_DML/∂X‖", "at the tower's output, all images of the step"),
    "grad_lm": ("‖λ_lm ∂L_GRPO/∂(X, DeepStack)‖", "likewise; compare with grad_dml to choose λ_lm"),
    "grad_reading": ("‖λ_reading ∂L_reading/∂(X, DeepStack)‖", "likewise"),
    "ratio_lm": ("GRPO's gradient as applied / grad_dml", "the paper wants 0.1 to 10; balanced, it is λ_lm"),
    "ratio_reading": ("the readings' gradient as applied / grad_dml", "likewise; balanced, it is λ_reading"),
    "ratio_anchor": ("‖λ_anchor ∂L_anchor/∂z‖ / ‖λ_dml ∂L_DML/∂z‖", "at the embeddings; 0 at the start, where nothing has moved"),
    "grad_over_eps": ("√mean (∂L/∂θ)² / AdamW's ε, after clipping", "near 1 or below, steps are smaller than lr_tower"),
    "grad_kl": ("‖λ_kl ∂L_KL/∂φ‖", "at the pooler's weights: KL reaches nothing else"),
    "grad_total": ("‖∂L/∂(θ, φ)‖ before clipping", "clipped to max_grad_norm; proxies are left out"),
    "lr_tower": ("lr_tower × (warm-up, then cosine)", "the step's learning rate of θ"),
    "pairs_drawn": ("number of pairs with G rollouts", "grows with the waves of dynamic sampling"),
    "contributing_pairs": ("min(K, pairs with 0 < mean r < 1)", "pairs replayed; fewer than K when waves ran out"),
    "contributing_fraction": ("pairs with 0 < mean r < 1 / pairs drawn", "how often rollouts of a pair disagree"),
    "contributing_same_class": ("same-class share of the contributing pairs", "0.5 would be balanced"),
    "reward_mean": ("mean r over all pairs drawn", "equals verdict_accuracy: only the verdict is rewarded"),
    "verdict_accuracy": ("mean r over all pairs drawn", "chance is 0.5: half the pairs are of one class"),
    "verdict_accuracy_same": ("mean r over same-class pairs", "low when one misread attribute makes 'different'"),
    "verdict_accuracy_different": ("mean r over different-class pairs", "low when a real difference is overlooked"),
    "json_valid": ("parseable answers / answers", "an invalid one is rewarded only if its verdict field is whole"),
    "truncated": ("answers cut at max_new_tokens / answers", "a truncated answer has no verdict, hence no reward"),
    "rollout_tokens": ("generated tokens of the step", "of all pairs drawn, contributing or not"),
    "tokens_per_second": ("rollout_tokens / seconds_b", "speed of generation"),
    "seconds_a": ("seconds of phase A", "first micro-batch: embed, DML backward to the boundary"),
    "seconds_b": ("seconds of phase B", "rollouts and rewards, further micro-batches included"),
    "seconds_c": ("seconds of phase C", "replay, KL, the one tower backward, update"),
    "seconds_audit": ("seconds of the gradient audit", "only on audited steps (notebook 12); no part of the method"),
    "seconds": ("seconds since the run's first step", "summed over resumptions"),
    "peak_gib": ("largest memory so far, GiB", "of the GPU, or of the process on a CPU"),
}


def metrics_page(logged: Sequence[str]) -> pd.DataFrame:
    """Return the meaning of every metric that a run logged; raises `SagaError` for one without an explanation."""
    if unknown := [name for name in logged if name not in LOGGED_METRICS]:
        raise SagaError(f"metric {unknown[0]} is logged but not explained; add it to saga_study.findings.metrics_page.LOGGED_METRICS")
    rows = [{"metric": n, "formula": LOGGED_METRICS[n][0], "reading": LOGGED_METRICS[n][1]} for n in LOGGED_METRICS if n in logged]
    return pd.DataFrame(rows)

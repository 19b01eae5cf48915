"""The supervisor: what it reads, answers and is taught."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from saga_lib.answers import AttributeSpan, parse_answer, parse_verdict
from saga_lib.vocabulary import Vocabulary
from saga_study.findings.figures.drawing import draw_grouped_bars
from saga_study.findings.figures.style import BLACK, BLUE, GREY, ORANGE, PALE, SKY, VERMILION, html_table, panels, section_tint
from saga_study.findings.names import plain
from saga_study.findings.page import render

# ----------------------------------------------------------------------------------------- the supervisor


def reading_bars(accuracy: Mapping[str, Mapping[str, float]], chance: Mapping[str, float]) -> Figure:
    """Show attribute-reading accuracy per attribute (%), a bar per condition, with the chance level of each."""
    names, places = list(chance), np.arange(len(chance))
    figure, [[axis]] = panels(1, 1, 10.5, 4.0)
    draw_grouped_bars(axis, {
        f"{condition} (mean {100 * np.mean(list(values.values())):.0f} %)": [100 * values[name] for name in names]
        for condition, values in accuracy.items()
    })  # fmt: skip
    for bars in axis.containers:
        axis.bar_label(bars, fmt="%.0f", fontsize=10, padding=1)
    axis.hlines(100 * np.array(list(chance.values())), places - 0.45, places + 0.45, color=BLACK, lw=1.5, ls=":", label="chance")
    axis.set_xticks(places, [plain(name).replace(" ", "\n") for name in names])
    axis.set_ylabel("attribute read correctly (%)")
    axis.set_ylim(0, 108)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def reward_histogram(same_class: np.ndarray, mean_reward: np.ndarray, group_size: int) -> Figure:
    """Show how many of the G verdicts of a pair are right, for pairs of one class and of two (% of pairs)."""
    figure, axes = panels(1, 2, 10, 3.4, sharey=True)
    correct = np.rint(np.asarray(mean_reward) * group_size).astype(int)
    for axis, kind, colour in ((axes[0, 0], True, BLUE), (axes[0, 1], False, ORANGE)):
        chosen = correct[np.asarray(same_class) == kind]
        counts = 100 * np.bincount(chosen, minlength=group_size + 1) / max(1, len(chosen))
        mixed = [colour] * (group_size + 1)
        mixed[0] = mixed[-1] = PALE
        axis.bar(range(group_size + 1), counts, color=mixed, edgecolor=GREY, lw=0.6)
        share, name = counts[1:-1].sum(), "same" if kind else "different"
        axis.set_title(f"{name} class: {share:.0f} % of {len(chosen)} pairs have mixed rewards")
        axis.set_xlabel(f"right verdicts among G = {group_size}")
        axis.set_xticks(range(group_size + 1))
    axes[0, 0].set_ylabel("pairs (%)")
    return figure


def readiness_bars(pairs: pd.DataFrame, verdict: str) -> Figure:
    """Show right verdicts and mixed groups (%) per kind of pair; `pairs` comes from `assessment.check_readiness`."""
    figure, axes = panels(1, 2, 11, 3.6, f"readiness: {verdict}", sharey=True)
    colours = [BLUE, *[ORANGE] * (len(pairs) - 1)]
    names = [f"{name.replace(', ', chr(10))}\n({count})" for name, count in zip(pairs["pairs"], pairs["number of pairs"], strict=True)]
    right = pairs["verdicts right (%)"].to_numpy(float)
    reach = np.minimum(pairs["± (points)"].to_numpy(float), np.stack([right, 100 - right]))
    axes[0, 0].bar(names, right, color=colours, yerr=reach, capsize=3)
    axes[0, 0].axhline(50, color=BLACK, lw=1.2, ls=":")
    axes[0, 1].bar(names, pairs["mixed rewards (%)"], color=colours)
    titles = "verdicts that are right (dotted: guessing)", "groups with mixed rewards: what GRPO learns from"
    for axis, title in zip(axes.flat, titles, strict=True):
        axis.set(title=title, ylim=(0, 103))
    axes[0, 0].set_ylabel("%, by kind of pair (number)")
    return figure

PRETRAINING_LOSSES = (  # axis label and the losses of each panel
    ("cross-entropy (nats per attribute)", {"probe": "vision: read attributes off the tokens"}),
    (
        "negative log-likelihood\n(nats per answer token)",
        {
            "text": "compare two lists (text only)", "describe": "describe one image", "compare": "compare two images",
            "generic": "compare, generic prompt",
        },
    ),
    ("contrastive loss (nats)", {"contrastive": "InfoNCE on mean-pooled tokens"}),
)  # fmt: skip


def pretraining_curves(log: Sequence[Mapping[str, float | str]]) -> Figure:
    """Show the losses of the supervisor's pre-training against its steps, the stages one after the other."""
    frame = pd.DataFrame(log)
    lengths = frame.groupby("stage", sort=False)["step"].max()
    starts = lengths.cumsum() - lengths
    frame["at"] = frame["step"] + frame["stage"].map(starts)
    figure, axes = panels(1, 3, 12.0, 3.6, grid="y")
    for axis, (title, labels) in zip(axes.flat, PRETRAINING_LOSSES, strict=True):
        for name, label in labels.items():
            if name in frame:
                known = frame[["at", name]].dropna()
                axis.plot(known["at"], known[name], label=label, marker="o", ms=3)
        for start in starts[starts > 0]:
            axis.axvline(start, color="0.7", lw=1, ls=":")
        axis.set_ylabel(title)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("pre-training step (dotted: next stage)")
        axis.set_xlim(0, frame["at"].max() * 1.02)
        if axis.lines:
            axis.legend(fontsize=8)
    return figure


def difference_histogram(counts: Mapping[str, np.ndarray], num_attributes: int) -> Figure:
    """Show in how many attributes the two classes of a pair differ (% of pairs), a colour per kind of pair."""
    figure, [[axis]] = panels(1, 1, 9, 3.6)
    draw_grouped_bars(axis, {
        f"{label} ({len(values):,} pairs)": 100 * np.bincount(values, minlength=num_attributes + 1) / max(1, len(values))
        for label, values in counts.items()
    })  # fmt: skip
    axis.set_xticks(range(num_attributes + 1))
    axis.set_xlabel(f"attributes that differ (of {num_attributes}; 0 = same class)")
    axis.set_ylabel("pairs (%)")
    axis.legend()
    return figure


# ---------------------------------------------------------------------------------------- answers and tokens


def rollout_table(
    texts: Sequence[str], rewards: Sequence[float], advantages: Sequence[float], vocabulary: Vocabulary,
    truth: tuple[Mapping[str, str], Mapping[str, str]] | None = None, finished: Sequence[bool] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Return one row per rollout of a pair: what it called different, its verdict, reward and advantage.

    `finished` says which answers were not cut at the token limit (default: all). With `truth`, the attributes of both images, it also
    counts how many descriptions are right.
    """
    rows, finished = [], [True] * len(texts) if finished is None else finished
    for number, (text, reward, advantage, ended) in enumerate(zip(texts, rewards, advantages, finished, strict=True), 1):
        answer = parse_answer(text, vocabulary.verdict_key) or {}
        differences = answer.get("differences", "–")
        if isinstance(differences, dict):
            differences = ", ".join(name for name, value in differences.items() if value == "different") or "none"
        verdict = {True: "same", False: "different", None: "unreadable"}[parse_verdict(text, vocabulary.verdict_key, bool(ended))]
        row = {"rollout": number, "called different": differences, "verdict": verdict}
        if truth is not None:
            for section, true in zip(vocabulary.keys.items, truth, strict=True):
                item = answer.get(section) if isinstance(answer.get(section), dict) else {}
                right = sum(item.get(name) == true[name] for name in vocabulary.attribute_names)
                row[f"{section} right"] = f"{right} of {len(vocabulary.attributes)}"
        rows.append(row | {"reward": int(reward), "advantage": round(float(advantage), 2)})
    return pd.DataFrame(rows)


def rollout_html(rollouts: pd.DataFrame, caption: str = "") -> str:
    """Return a `rollout_table` as HTML: rewarded rows greenish blue, the others orange."""
    return html_table(rollouts, [section_tint("_1" if reward else "_2") for reward in rollouts["reward"]], caption)


def answer_html(text: str, spans: Sequence[AttributeSpan]) -> str:
    """Return an answer as HTML with its attribute values highlighted: blue for item 1, orange for item 2."""
    parts, position = [], 0
    for span in sorted(spans, key=lambda span: span.start):
        parts.append((text[position : span.start], "", ""))
        parts.append((text[span.start : span.end], f"{span.section}: {span.attribute}", section_tint(span.section) or PALE))
        position = span.end
    return render("answer.html", parts=[*parts, (text[position:], "", "")])


def token_spans(pieces: Sequence[str], places: Mapping[tuple[str, str], Sequence[int]]) -> pd.DataFrame:
    """Return one row per token of an answer, naming the section and attribute whose value it describes.

    `places` is what `supervisor.replay.attribute_tokens` returns.
    """
    owner = {token: name for name, tokens in places.items() for token in tokens}
    rows = []
    for number, piece in enumerate(pieces):
        section, attribute = owner.get(number, ("", ""))
        rows.append({"token": number, "text": piece, "section": section, "attribute": attribute})
    return pd.DataFrame(rows)


def slot_table(
    log_probs: np.ndarray, values: Sequence[Mapping[tuple[str, str], str]],
    places: Sequence[Mapping[tuple[str, str], Sequence[int]]], differing: Sequence[str],
) -> pd.DataFrame:  # fmt: skip
    """Return one row per described attribute: how its log-probability varies over the G rollouts of a pair.

    log_probs (G, T); per rollout, `places` maps (section, attribute) to token indices and `values` to the text.
    `differing` names the attributes in which the two images truly differ.
    """
    slots = list(dict.fromkeys(slot for one in places for slot in one))
    rows = []
    for section, attribute in slots:
        inside = [g for g, one in enumerate(places) if one.get((section, attribute))]
        total = [log_probs[g, places[g][section, attribute]].sum() for g in inside]
        texts = pd.Series([values[g].get((section, attribute), "") for g in inside])
        common = texts.value_counts()
        rows.append(
            {
                "section": section, "attribute": attribute, "truly differs": attribute in differing,
                "mean log-prob": float(np.mean(total)), "spread": float(np.std(total)),
                "distinct values": len(common), "most frequent": f"{common.index[0]} ({common.iloc[0]}×)",
            }  # fmt: skip
        )
    return pd.DataFrame(rows)


def slot_bars(slots: pd.DataFrame, title: str) -> Figure:
    """Show the spread of log-probabilities per described attribute (nats), truly differing ones in vermilion."""
    sections = list(dict.fromkeys(slots["section"]))
    names = list(dict.fromkeys(slots["attribute"]))
    figure, axes = panels(1, len(sections), 4.3 * len(sections) + 1, 0.38 * len(names) + 1.6, title, "x", sharex=True, sharey=True)
    for axis, section in zip(axes.flat, sections, strict=True):
        part = slots[slots["section"] == section].set_index("attribute").reindex(names)
        colours = [VERMILION if differs is True or differs == 1 else SKY for differs in part["truly differs"]]
        axis.barh(range(len(names)), part["spread"].fillna(0), color=colours)
        axis.set_title({"_1": "describing image a", "_2": "describing image b"}.get(section[-2:], section))
        axis.set_xlabel("standard deviation of log π\nover the rollouts (nats)")
    axes[0, 0].set_yticks(range(len(names)), map(plain, names))
    axes[0, 0].invert_yaxis()
    patches = [plt.Rectangle((0, 0), 1, 1, color=c) for c in (VERMILION, SKY)]
    figure.legend(patches, ["the two images differ in it", "they share it"], loc="outside lower center", ncols=2)
    return figure

"""The benchmark of the full-size step runs, as a toy on the CPU."""

import importlib
import json
from dataclasses import replace

import pytest
import torch

from saga_lib.common.paths import REPOSITORY
from saga_lib.config import RunConfig
from saga_study import planner
from saga_study.methods import make_config


@pytest.fixture
def paper_step(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("paper_step")


WIDE = ["a wide tower"]
INTERNVL = ["--supervisor", "OpenGVLab/InternVL3_5-8B-HF"]


@pytest.mark.parametrize(
    "options",
    [[], ["--lora-rank", "2", "--waves", "2", "--replay-rows", "0"], ["--recompute-layers"], INTERNVL, [*INTERNVL, "--recompute-layers"]],
)
def test_the_toy_runs_every_phase(paper_step, options, tmp_path, capsys):
    rows = paper_step.main(["--tiny", "--output", str(tmp_path / "step.json"), *options])
    assert [row["phase"] for row in rows] == ["A", "B", "C replay", "C reading", "C tower", "C optimizer", "step"]
    assert all(row["seconds"] > 0 and row["estimated seconds"] > 0 and row["estimated GiB"] > 0 for row in rows)
    assert rows[1]["tokens/s"] > 0 and all(0 < row["MFU"] < 1 for row in rows[:5])
    told = json.loads((tmp_path / "step.json").read_text())
    assert told["phases"] == rows and told["L_KL"] > 0 and told["reading"]["reading"] > 100
    assert "estimated seconds" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl"])
def test_lengths_are_forced_and_the_step_trains(paper_step, family):
    config = make_config(
        "paper", "cub200", "saga_pf", 0, image_size=48, embedding_dim=16, batch_size=8, pairs_per_wave=2, contributing_pairs=2,
        group_size=4,
    )  # fmt: skip
    step = paper_step.Step(paper_step.TINY[family], config, paper_step.Lengths(40, 12), torch.device("cpu"))
    assert len(step.prompt_ids) == 40 and len(step.supervisor.image_columns(step.prompt_ids)) == 2
    rollouts = step._wave(step._phase_a(), 0)
    assert rollouts.tokens.shape == (8, 12) and rollouts.mask.all()
    before = [p.detach().clone() for p in step.encoder.parameters()]
    step.run()
    changed = [not torch.equal(a, b) for a, b in zip(before, step.encoder.parameters(), strict=True)]
    assert sum(changed) > 0.9 * len(changed)
    assert sum(planner.count_parameters(paper_step.TINY[family]).values()) == sum(
        p.numel() for p in {*step.encoder.tower.parameters(), *step.supervisor.language_model.parameters()}
    )


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl"])
def test_the_planner_counts_the_operations_that_torch_counts(paper_step, family):
    """Phase by phase, on a toy: torch sees every product that is computed, the planner knows shapes and lengths alone."""
    from torch.utils.flop_counter import FlopCounterMode

    shapes, prompt, answer = paper_step.TINY[family], 40, 24
    config = make_config(
        "paper", "cub200", "saga_pf", 0, image_size=48, embedding_dim=16, batch_size=8, pairs_per_wave=2, contributing_pairs=2,
        group_size=4, replay_pairs=1, replay_rows=0, max_new_tokens=answer, tower_images=0,
    )  # fmt: skip
    step = paper_step.Step(shapes, config, paper_step.Lengths(prompt, answer), torch.device("cpu"))

    def counted(work):
        with FlopCounterMode(display=False) as counter:
            result = work()
        return counter.get_total_flops(), result

    tower = step.encoder.tower
    forward, tokens = counted(lambda: tower(step.pixels))
    backward, _ = counted(lambda: sum(part.sum() for part in (tokens.merged, *tokens.deepstack)).backward())
    batch = step._phase_a()
    rollouts, answers = counted(lambda: step._wave(batch, 0))
    replay, _ = counted(lambda: paper_step.replay_phase(
        step.encoder, step.supervisor, step.prompt_ids, batch.tokens, step._buffer(answers),
        paper_step.ReplaySettings(0, 1.0, 0.0, config.replay_pairs),
    ))  # fmt: skip
    work = replace(
        planner.workload(config, shapes, planner.Assumptions()), prompt=prompt, answer=answer, longest=answer, waves=1, batch=8,
        micro_batches=1, pairs_drawn=2, rows_per_pair=4, pairs_replayed=2,
    )  # fmt: skip
    done = planner.operations(config, shapes, work)
    assert (done["tower forward"], done["tower backward"]) == (forward, backward)
    config = step.config = replace(config, tower_images=3)
    batch = step._phase_a()
    again, _ = counted(lambda: paper_step.tower_backward([batch], batch.tokens))  # any gradient will do
    assert planner.operations(config, shapes, work)["tower backward"] == again == forward + backward
    # An answer's last token is fed to nothing, and torch counts causal attention as if nothing were hidden: the shorter, the more.
    assert done["prefill"] + done["decode"] == pytest.approx(rollouts, rel=0.03)
    assert 0.88 < (done["replay forward"] + done["replay backward"]) / replay < 1


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl"])
@pytest.mark.parametrize("at_a_time", [0, 4])
def test_the_planner_counts_the_operations_of_readings(paper_step, family, at_a_time):
    import numpy as np
    from torch.utils.flop_counter import FlopCounterMode

    shapes = paper_step.TINY[family]
    config = make_config(
        "paper", "cub200", "saga_pf", 0, image_size=48, embedding_dim=16, batch_size=8, reading_signal="contrast", reading_images=at_a_time
    )
    step = paper_step.Step(shapes, config, paper_step.Lengths(40, 12), torch.device("cpu"))
    batch, loss = step._phase_a(), paper_step.reading_loss(config, step.labels, np.random.default_rng(0))
    with FlopCounterMode(display=False) as counter:
        paper_step.reading_phase(step.reader, batch.tokens, loss, 1.0, at_a_time)
    work = replace(planner.workload(config, shapes, planner.ASSUMED), batch=8, micro_batches=1, **step.reading)
    done = planner.operations(config, shapes, work)
    assert done["reading forward"] + done["reading backward"] == pytest.approx(counter.get_total_flops(), rel=0.03)


@pytest.mark.parametrize("family", [[], INTERNVL])
@pytest.mark.parametrize(
    "options",
    [
        ["--tower-images", "0"], ["--tower-images", "0", "--recompute-layers"], ["--tower-images", "0", "--waves", "3"],
        ["--tower-images", "0", "--waves", "2", "--lora-rank", "2"], ["--tower-images", "0", "--replay-rows", "0"],
        ["--tower-images", "3", "--waves", "3"], WIDE,
    ],
)  # fmt: skip
def test_the_planner_expects_the_memory_that_torch_allocates(paper_step, family, options, monkeypatch):
    """Phase by phase, a toy computed as a GPU would, in bf16; where a tower is wide the optimizer's step needs most of phase C.

    All parts are alike in size in a toy; results of real sizes are held to less (below).
    """
    if options is WIDE:
        options = []
        for name, shapes in paper_step.TINY.items():
            monkeypatch.setitem(paper_step.TINY, name, replace(shapes, vision_hidden=192, vision_intermediate=384))
    for row in paper_step.main(["--tiny", "--cpu", *family, *options]):
        assert row["estimated GiB"] == pytest.approx(row["GiB"], rel=0.07), row["phase"]


@pytest.mark.parametrize("result", sorted((REPOSITORY / "benchmarks" / "results").glob("paper-step-*.json")), ids=lambda path: path.stem)
def test_the_planner_expects_the_memory_that_real_sizes_took(paper_step, result):
    """As `--output` wrote it; the planner of today, with the assumptions of then. Also what is neither weight nor optimizer."""
    told = json.loads(result.read_text())
    shapes, config = planner.Architecture(**told["shapes"]), RunConfig.from_dict(told["config"])
    assume = planner.Assumptions(**told["assumptions"])
    classes = config.batch_size // config.batch_images_per_class
    parts = planner.memory_by_phase(config, shapes, replace(planner.workload(config, shapes, assume), num_classes=classes), assume)["B"]
    lasting = sum(parts[name] for name in parts if name.startswith(("language model", "tower, float32", "its AdamW", "pooler")))
    measured = {row["phase"]: row for row in told["phases"]}
    laps = {phase: row["seconds"] for phase, row in measured.items()}
    for row in paper_step.compare(shapes, config, paper_step.Lengths(told["prompt"], told["answer"], told["waves"]), laps, assume):
        assert row["estimated GiB"] == pytest.approx(measured[row["phase"]]["GiB"], rel=0.007), row["phase"]
        if row["phase"] != "A":
            assert row["estimated GiB"] - lasting == pytest.approx(measured[row["phase"]]["GiB"] - lasting, rel=0.07), row["phase"]


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl"])
def test_the_planner_knows_the_kernels_of_a_decoding_step(paper_step, family):
    """Operations that are neither views nor bound by what they read, in bf16 as on a GPU; what each layer adds."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from without_gpu import gpu_path

    from saga_lib.supervisor.decoding import FixedDecoder

    class Kernels(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            reads = func is torch.ops.aten.mm.default or "scaled_dot_product" in str(func)
            self.count += not (reads or func.is_view or func is torch.ops.aten._unsafe_view.default)
            return func(*args, **(kwargs or {}))

    def kernels(layers):
        shapes, config = replace(paper_step.TINY[family], layers=layers), make_config("paper", "cub200", "saga_pf", 0, image_size=48)
        with gpu_path(), torch.no_grad():
            encoder, supervisor = paper_step.build(shapes, config, torch.device("cpu"), torch.bfloat16)
            side, patches = config.image_size, (shapes.patches(config.image_size), shapes.patch_values)
            with paper_step.towers.autocast(supervisor.device):
                images = encoder.tower(torch.randn(4, *((3, side, side) if family == "internvl" else patches)))
                prefix = supervisor.prefill(paper_step.forced_prompt(supervisor, 40, shapes.vocabulary), images)
            decoder = FixedDecoder(supervisor, prefix, 4, 24, graphs=False)
            with Kernels() as seen:
                decoder.extend(torch.zeros(8, 1, dtype=torch.long))
        return seen.count

    assert (kernels(5) - kernels(3)) / 2 == planner.Assumptions().kernels_per_layer


def test_bytes_are_counted_while_tensors_live(paper_step):
    from without_gpu import Allocated

    with Allocated() as allocated:
        kept = torch.zeros(1000)
        view = kept[:10]
        dropped = torch.zeros(3000)
        del dropped
        assert (allocated.now, allocated.peak) == (4000, 16_000)
        allocated.reset_peak()
        del kept
        assert (allocated.now, allocated.peak) == (4000, 4000)  # the view holds the memory
        del view
    assert allocated.now == 0


def test_weights_on_disk_are_those_of_a_model_and_go_with_the_process(paper_step, tmp_path, monkeypatch):
    from without_gpu import OnDisk

    cleanups = []
    monkeypatch.setattr("without_gpu.atexit.register", cleanups.append)
    with OnDisk(tmp_path, smallest=100):
        weight, small, other = (torch.empty(size, dtype=dtype) for size, dtype in ((400, torch.bfloat16), (4, torch.bfloat16), (400, None)))
        weight = torch.nn.Parameter(weight.view(20, 20)).data.fill_(3)
    (file,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert torch.equal(torch.from_file(str(file), size=400, dtype=torch.bfloat16), weight.flatten()) and (weight == 3).all()
    assert len(small) == 4 and other.dtype == torch.float32
    cleanups[0]()
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="existing folder, and --cpu"):
        paper_step.main(["--tiny", "--weights-in", str(tmp_path)])


def test_the_step_is_the_same_with_weights_on_disk(paper_step, tmp_path, monkeypatch):
    monkeypatch.setattr(paper_step, "OnDisk", lambda folder: importlib.import_module("without_gpu").OnDisk(folder, smallest=100))
    towers, init = [], paper_step.Step.__init__

    def keeping(self, *args, **kwargs):
        init(self, *args, **kwargs)
        towers.append(self.encoder.tower)

    monkeypatch.setattr(paper_step.Step, "__init__", keeping)
    memory, disk = (paper_step.main(["--tiny", "--cpu", *option]) for option in ([], ["--weights-in", str(tmp_path)]))
    assert [row["GiB"] for row in memory] == [row["GiB"] for row in disk]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) > 20
    for a, b in zip(towers[0].parameters(), towers[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_models_built_on_the_gpu_path_take_its_attention(paper_step, monkeypatch):
    """The stock wrapper, which repeats keys behind a mask, serves the replay; afterwards a CPU has its own way again."""
    from transformers.integrations import sdpa_attention

    calls, stock = [], sdpa_attention.sdpa_attention_forward

    def seen(module, query, key, value, mask, **kwargs):
        calls.append(mask is not None)
        return stock(module, query, key, value, mask, **kwargs)

    monkeypatch.setattr(sdpa_attention, "sdpa_attention_forward", seen)
    paper_step.main(["--tiny", "--cpu"])
    assert any(calls)
    calls.clear()
    paper_step.main(["--tiny"])
    assert not any(calls)

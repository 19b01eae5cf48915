"""What shapes do not determine: how fast a card is, how much of that programs reach, how long answers are.

Calibrated numbers are fitted to what an H100 took (`benchmarks/results/h100-80gb.json`, steps and parts of them at 8 billion parameters).
Others come from data sheets, are counted, or are guesses; each says which. All else in this package follows from shapes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Assumptions:
    """A card, by default an H200, and what a run is expected to hold."""

    # the run
    characters_per_token: float = 3.9  # of a prompt that was not measured (3.9 to 4.1 for those of `MEASURED_LENGTHS`)
    tokens_per_attribute: float = 14.0  # of one image in an answer of free text: key, quotes, a few words; a guess
    other_answer_tokens: float = 120.0  # differences, confidence, reasoning, verdict; a guess
    longest_answer: float = 1.2  # the longest answer of a wave over the mean one; a guess
    contributing_fraction: float = 0.35  # of pairs whose G verdicts differ, a guess; sets how many waves fill the buffer
    images_per_second: float = 250.0  # read, decoded and resized by the CPU; a guess
    startup_minutes: float = 3.0  # of a run: imports, weights; a guess
    # the card
    card: str = "H200"
    memory_gib: float = 139.0  # that it offers to programs
    peak_tflops: float = 790.0  # bf16 matrix products in practice; the data sheet says 989
    bandwidth_tb: float = 4.8  # TB/s of memory, data sheet
    # how much of it is reached
    utilisation: float = 0.55  # of the peak, in prefill, replay and tower, launches left out; calibrated
    bandwidth_share: float = 0.89  # of the bandwidth, in decoding and in the optimizer's step; calibrated
    kernels_per_layer: int = 48  # of a decoding step, its seven products and the attention left out; counted
    kernel_us: float = 3.15  # µs of such a kernel that a CUDA graph replays, beyond what it reads and writes; calibrated
    sampling_ns: float = 0.27  # per row and word of the vocabulary: every step sorts all, 0.05 where all tokens are certain; calibrated
    launches: float = 1.0  # of the times that launching kernels one by one takes (`costs`), which are calibrated; 0: a CPU
    link_gb: float = 300.0  # GB/s between the GPUs of a node; NVLink's 450 by the data sheet, the rest a guess
    exchange_us: float = 50.0  # µs in which they tell each other a number, for every token that is sampled; a guess
    copy_gb: float = 3.0  # GB/s of pixels on their way to the card; a guess
    fragmentation: float = 0.05  # of allocated GPU memory that cannot be used; a guess
    context_gib: float = 0.7  # CUDA context and libraries; a guess


ASSUMED = Assumptions()
# The same chip with two memories. Only the H100 was measured; the H200 is assumed to reach the same share of its bandwidth.
CARDS = {"H100": Assumptions(card="H100", memory_gib=79.0, bandwidth_tb=3.35), "H200": ASSUMED}


def card_of(gpu_memory: float) -> Assumptions:
    """Return the named card whose speed stands for a GPU of `gpu_memory` GiB: an H200 above 100, else an H100."""
    return CARDS["H200" if gpu_memory > 100 else "H100"]

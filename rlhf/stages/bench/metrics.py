"""The metrics of a benchmark: the speed of steps, of phases of PPO, and of a step of each stage."""

from dataclasses import replace

from rlhf.catalog.metric import PHASES, SPEED, Metric, rates_of
from rlhf.stages.ppo.metrics import PHASE_SPEED

# The stages that a benchmark can measure.
MEASURED = ("sft", "reward", "ppo")
# Sequences per second: of what a round is, or of the part of it that is measured.
RATES = (
    "throughput/samples_per_s",
    *(f"throughput/{part}_samples_per_s" for part in (*reversed(MEASURED), "rollout", "score", "train")),
)
# What a benchmark's variants are compared by, for each `bench.what`.
TIME_OF = {
    "rollout": "time/rollout_s", "score": "time/score_s", "train": "time/train_s", "step3": "time/step_s",
    "sft": "time/step_s", "reward": "time/step_s", "stages": "time/step_s",
}  # fmt: skip
DECODING = (
    Metric("time/decode_step_ms", "ms",
        "wall time of a rollout per step of its longest response, reading the prompts included"),
    Metric("time/decode_limit_ms", "ms",
        "time/decode_step_ms if it were what reading weights and cache takes at the copy bandwidth"),
    Metric("throughput/decode_gb_s", "GB/s", "weights and cache that a rollout reads, over its time, per device"),
    Metric("throughput/copy_gb_s", "GB/s",
        "bytes read and bytes written by a large copy in the device's memory, over its time"),
    Metric("throughput/decode_share", "share",
        "throughput/decode_gb_s over throughput/copy_gb_s: how near a rollout is to the memory's limit",
        "decoding, share of bandwidth", "of bandwidth", format="{:.1%}", final=True, better=1),
)  # fmt: skip
MATRICES = (
    Metric("time/busy_s", "s", "time of a step that the device worked: on a CPU this process's time on the processor"),
    Metric("throughput/matrix_tflops", "TFLOP/s",
        "largest rate of torch's product of two matrices in the model's format; on a CPU per second of the processor's"),
    *(
        Metric(f"throughput/{phase}_matrix_share", "share",
            f"operations of the {phase} phase per second of the device's, over throughput/matrix_tflops",
            f"{phase}, share of the matrix rate", "of matrix rate", format="{:.1%}", better=1)
        for phase in PHASES
    ),
)  # fmt: skip
STEPS = (
    Metric("time/sft_s", "s", "wall time of a step of supervised fine-tuning, in a benchmark"),
    Metric("time/reward_s", "s", "wall time of a step of reward modelling, in a benchmark"),
    Metric("time/ppo_s", "s", "wall time of a step of PPO, in a benchmark: a rollout, its scoring, its updates"),
    *(metric for stage in MEASURED for metric in rates_of(stage, f"of the {stage} stage", stage)),
)  # fmt: skip
# What people compare, beside RATES.
COMPARED = ("throughput/mfu", *(f"throughput/{stage}_mfu" for stage in MEASURED), "memory/peak_gib")
# The words on the axes of plots.
AXES = {"throughput/samples_per_s": "sequences per second"} | {
    metric.name: "tokens per second" for metric in PHASE_SPEED if metric.name.endswith("_tokens_per_s")
}


def mark_final(metric: Metric) -> Metric:
    """Return a metric as a benchmark has it: a rate is its result, not a means to judge how it went."""
    final = metric.final or metric.name in (*RATES, *COMPARED)
    return replace(metric, final=final, axis=AXES.get(metric.name, ""))


METRICS = tuple(map(mark_final, (*SPEED[:-1], *DECODING, *MATRICES, *PHASE_SPEED, *STEPS, SPEED[-1])))

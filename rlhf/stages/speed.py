"""Time, throughput and memory of one step of supervised training."""

from rlhf.config.schema import Config
from rlhf.engine.distributed import maximum, total
from rlhf.plan.flops import training_flops
from rlhf.track.throughput import Clock, peak_memory_gib, speed


def step_speed(config: Config, lengths: list[int], forward: int, checkpointing: bool, clock: Clock) -> dict[str, float]:
    """Metrics over all ranks; `lengths` and `forward` (operations) are this rank's."""
    samples, tokens, flops = total(len(lengths), sum(lengths), training_flops(forward, checkpointing))
    seconds = maximum(clock.seconds["step"])
    whole = speed(config, "", seconds, samples, tokens, flops)
    return {"time/step_s": seconds, "memory/peak_gib": maximum(peak_memory_gib()), **whole}

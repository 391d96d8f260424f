"""Time, throughput and memory of one step of supervised training."""

from rlhf.config.schema import Config
from rlhf.runtime.device import peak_memory_gib
from rlhf.runtime.distributed import maximum, total
from rlhf.tracking.throughput import Clock, throughput_metrics


def step_speed(config: Config, lengths: list[int], flops: int, clock: Clock) -> dict[str, float]:
    """Metrics over all ranks; `lengths` of the sequences and `flops` (operations) are this rank's."""
    samples, tokens, operations = total(len(lengths), sum(lengths), flops)
    seconds = maximum(clock.seconds["step"])
    whole = throughput_metrics(config, "", seconds, samples, tokens, operations)
    return {"time/step_s": seconds, "memory/peak_gib": maximum(peak_memory_gib()), **whole}

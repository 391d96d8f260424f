"""How fast step 3 is, on random weights and random tokens: what `python -m rlhf bench` and stage=bench are made of."""

from rlhf.catalog.stage import StageKind, Work, kind_of
from rlhf.config.derive import benchmark_config
from rlhf.config.schema import LORAS, ZEROS, Bench, Config
from rlhf.planner.ppo import longest_step
from rlhf.stages.bench.metrics import MEASURED, METRICS, RATES


def measured_stages(config: Config) -> list[str]:
    """Return the stages whose steps are measured: all three, the stage that is named, or else PPO."""
    what = config.bench.what
    return list(MEASURED) if what == "stages" else [what] if what in MEASURED else ["ppo"]


def work(config: Config) -> Work:
    """Return the rounds of a benchmark, and its operations with those that warm up."""
    ppo = longest_step(config)
    experience = ppo["rollout"] + ppo["score"]
    phases = {"rollout": ppo["rollout"], "score": experience, "train": ppo["update"], "step3": sum(ppo.values())}
    if config.bench.what not in phases:
        measured = [kind_of(stage).step_flops(config, 2) for stage in measured_stages(config)]
    else:
        measured = [phases[config.bench.what]]
    once = experience if config.bench.what == "train" else 0
    return Work(config.bench.repeats * len(measured), once + (config.bench.repeats + 1) * sum(measured))


KIND = StageKind(
    name="bench",
    run="rlhf.stages.bench.run:run",
    result_keys=(
        "seed", "bench", "model", "reward_model", "hardware", "precision", *ZEROS, *LORAS, "data", "sft", "reward", "ppo",
        "dpo", "best_of_n", "rollout", "rewards", "gold", "launcher.threads",
    ),
    schema=Bench,
    metrics=METRICS,
    headline=RATES,
    compared=(("throughput/samples_per_s", "throughput/mfu"), (*RATES, "throughput/decode_share")),
    step="round",
    work=work,
    samples_responses=True,
    simplify=benchmark_config,
    measures=measured_stages,
    is_benchmark=True,
)  # fmt: skip

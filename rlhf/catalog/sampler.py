"""Samplers: which there are, what each refuses, and where its class lies. Nothing here imports torch.

`rollout.engine` names one of SAMPLERS, or the class of somebody else's sampler as "module:Class". Such a class has the
methods of `rlhf.rollout.base.Sampler`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from rlhf.catalog.families import FAMILIES
from rlhf.catalog.named import advise, load_named
from rlhf.config.errors import ConfigError, ConfigErrors
from rlhf.config.schema import Config

METHODS = "problem", "sync", "generate", "release"
# The last release of DeepSpeed that is known not to serve OPT with transformers 5.
NO_CACHE = (0, 19)


@dataclass(frozen=True)
class SamplerKind:
    """A sampler of this package.

    Attributes:
        sampler: Its class, as "module:Class".
        problem: Says why it cannot serve a configuration; None where it can.
    """

    sampler: str
    problem: Callable[[Config], ConfigError | None] = lambda config: None


def paged_problem(config: Config) -> ConfigError | None:
    """Say why transformers' continuous batching cannot serve a configuration: a family that it answers wrongly, or weights
    that are never whole."""
    rollout, family, served, problems = config.rollout, config.model.family, paged_families(), []
    if family not in served:
        problem = f"the continuous batching of transformers {version('transformers')} does not serve a {family}"
        problems.append(
            ConfigError("rollout.engine", "paged", f"{problem} (but {', '.join(served)})", "try rollout=hybrid")
        )
    if config.zero.stage == 3 and rollout.gather == "layers":
        problem = "ranks that sample at their own pace cannot gather layers together"
        problems.append(ConfigError("rollout.gather", "layers", problem, "set rollout.gather=all, or try rollout=hybrid"))
    return ConfigErrors(problems) if problems else None


def paged_families() -> tuple[str, ...]:
    """List the families that the installed transformers serves by continuous batching."""
    release = parse_release("transformers")
    return tuple(name for name, family in FAMILIES.items() if family.is_paged(release))


def deepspeed_problem(config: Config) -> ConfigError | None:
    """Say why DeepSpeed's hybrid engine cannot serve a configuration: it has no kernels for the device, the family, the
    adapters, or the installed transformers."""
    problem, family = None, config.model.family
    served = [name for name, known in FAMILIES.items() if known.has_deepspeed_kernels]
    if config.hardware.device == "cpu":
        problem = "DeepSpeed's hybrid engine has kernels for GPUs only"
    elif family not in served:
        problem = f"DeepSpeed's hybrid engine does not serve a {family} (but {', '.join(served)})"
    elif config.lora.rank > 0:
        problem = "DeepSpeed's hybrid engine adds adapters to the weights and subtracts them, which does not give them back"
    elif parse_release("deepspeed") <= NO_CACHE and parse_release("transformers") >= (5, 0):
        problem = (
            f"the hybrid engine of DeepSpeed {version('deepspeed')} wants the key-value cache of transformers 4, and "
            f"transformers is {version('transformers')}"
        )
    return None if problem is None else ConfigError("rollout.engine", "deepspeed", problem, "try rollout=hybrid")


def parse_release(package: str) -> tuple[int, int]:
    """Return the release of an installed package, major and minor."""
    major, minor = version(package).split(".")[:2]
    return int(major), int(minor)


SAMPLERS = {
    "hf": SamplerKind("rlhf.rollout.hf:HFSampler"),
    "hybrid": SamplerKind("rlhf.rollout.hybrid.sampler:HybridSampler"),
    "paged": SamplerKind("rlhf.rollout.paged:PagedSampler", paged_problem),
    "deepspeed": SamplerKind("rlhf.rollout.deepspeed:DeepSpeedSampler", deepspeed_problem),
}


def load_sampler(name: str) -> Any:
    """Import the class of the sampler that `rollout.engine` names. Raises ConfigError where there is none."""
    known, form = {kind: entry.sampler for kind, entry in SAMPLERS.items()}, "a class as module:Class"
    sampler = load_named("rollout.engine", name, known, form)
    missing = [method for method in METHODS if not callable(getattr(sampler, method, None))]
    if missing:
        raise ConfigError("rollout.engine", name, f"it has no {', '.join(missing)}", advise(known, form))
    return sampler


def sampler_problem(config: Config) -> ConfigError | None:
    """Say why the sampler that the configuration names cannot serve it. This package's samplers are not imported."""
    name = config.rollout.engine
    if name in SAMPLERS:
        return SAMPLERS[name].problem(config)
    try:
        problem: ConfigError | None = load_sampler(name).problem(config)
    except ConfigError as error:
        return error
    return problem

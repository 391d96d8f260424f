"""Variants of a configuration beside each other: they take turns on the same models, and medians are told."""

import statistics
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config
from rlhf.runtime.device import held_gib, peak_memory_gib, reset_peak
from rlhf.stages.bench.rounds import MakeRound, Round

Figures = dict[str, float]


@dataclass
class Measured:
    """A variant's rounds; or why there are none: a `problem` of its own, which does not stop the others, `refused` if it
    cannot serve the configuration."""

    rounds: list[Figures] = field(default_factory=list)
    problem: str | None = None
    refused: bool = False

    @property
    def median(self) -> Figures:
        """The median of each figure."""
        return medians(self.rounds)


class Failed(Exception):
    """A variant cannot go on, and may have left the models in the middle of an update."""

    def __init__(self, variant: str, measured: Measured) -> None:
        super().__init__(measured.problem)
        self.variant, self.measured = variant, measured


def medians(rounds: list[Figures]) -> Figures:
    """Return the median of each figure over the rounds that have it."""
    names = dict.fromkeys(name for figures in rounds for name in figures)
    return {name: statistics.median(figures[name] for figures in rounds if name in figures) for name in names}


def compare(
    variants: dict[str, Config],
    build: Callable[[], AbstractContextManager[MakeRound]],
    repeats: int,
    optional: Collection[str] = (),
) -> dict[str, Measured]:
    """Every variant's rounds. One that runs out of the GPU's memory is reported as such, and so is one of the `optional`
    ones that cannot serve the configuration; the others begin anew, on models of their own. Raises ConfigError for another
    that cannot, and if the models alone do not fit."""
    found = {name: Measured() for name in variants}
    while left := {name: config for name, config in variants.items() if found[name].problem is None}:
        try:
            with build() as make_round:
                once = {name: make_round(config) for name, config in left.items()}
                rounds = interleave(once, repeats, next(iter(left.values())).bench.what == "rollout", optional)
        except Failed as failed:
            found[failed.variant] = failed.measured
        except torch.OutOfMemoryError as error:
            first = next(iter(left.values()))
            problem = "its models and optimisers alone fill the GPU's memory"
            raise ConfigError(
                "model", first.model.name, problem, "try zero=3-offload, lora=r8 or other hardware"
            ) from error
        else:
            return found | {name: Measured(figures) for name, figures in rounds.items()}
    return found


def interleave(
    rounds: dict[str, Round], repeats: int, only_caches: bool, optional: Collection[str] = ()
) -> dict[str, list[Figures]]:
    """`repeats` rounds of each after one that warms up, in turns. Raises Failed.

    Memory is that of the first turn: later on, what other variants keep between theirs would be counted too. If it is
    `only_caches` that a turn leaves, as a rollout does, those of the variants before are taken off; if it is the state of
    optimisers as well, they are not, since every variant needs that.
    """
    told: dict[str, list[Figures]] = {name: [] for name in rounds}
    memory: dict[str, float] = {}
    start = held_gib()
    for number in range(repeats + 1):
        for name, once in rounds.items():
            others = held_gib() - start if only_caches else 0.0
            reset_peak()
            figures = run_once(name, once, name in optional)
            if number == 0:
                memory[name] = peak_memory_gib() - others
            else:
                told[name].append(figures | {"memory/peak_gib": memory[name]})
    return told


def run_once(name: str, once: Round, optional: bool) -> Figures:
    """Run a round of a variant. Raises Failed."""
    try:
        return once()
    except torch.OutOfMemoryError as error:
        raise Failed(name, Measured(problem="out of memory")) from error
    except ConfigError as error:
        if not optional:
            raise
        raise Failed(name, Measured(problem=str(error), refused=True)) from error

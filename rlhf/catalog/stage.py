"""What a stage is to the rest of the program: one record for each kind of stage, which its package in rlhf/stages/ defines.

A room below rlhf/stages/ reads a kind through `kind_of`, which imports the package by its name when it is asked for. No
other module names a stage, and nothing here or in those packages' `__init__` imports torch.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from rlhf.catalog.metric import SPEED, Metric, standard_errors
from rlhf.catalog.role import Role
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config

PACKAGE = "rlhf.stages"
# The kinds of records.
Reads = Literal["demonstrations", "comparisons", "labelled", "prompts"]


@dataclass(frozen=True)
class Input:
    """A model that a stage starts from, or a data set that it reads: `key` gives it by path. Where the key is null, or, of
    a data set, names the stage `stage`, that stage makes it; an input without such a stage may be given as the name of an
    input before it, which it then shares. A configuration for which `is_used` is false does without it. `changes` are keys
    of that stage that have other values for this input. `holds` is the directory of that stage that it is: `model` or
    `data`."""

    name: str
    key: str
    stage: str | None = None
    changes: tuple[tuple[str, Any], ...] = ()
    is_used: Callable[[Config], bool] = field(default=lambda config: True, compare=False)
    holds: Literal["model", "data"] = "model"

    def is_made(self, value: str | None) -> bool:
        """Whether the stage makes it where its key has this value."""
        return self.stage is not None and value == (self.stage if self.holds == "data" else None)


@dataclass(frozen=True)
class Work:
    """The steps of a stage (optimiser steps, rollouts or measured rounds), its operations if every sequence were as long as
    it may be, and the answers that a record of comparisons has at most: those of a pair, or of all pairs of a prompt."""

    steps: int
    flops: int
    answers: int = 2


@dataclass(frozen=True)
class SetCounts:
    """A set of a mixture.

    Attributes:
        rows: How many of its rows are the part's.
        shape: The shape that they were read in.
        left_out: How many of them hold no record, by the reason.
        available: Its records of each kind (`demonstrations`, `comparisons`, `labelled`, `prompts`).
        taken: How many of these the mixture has; more than are available where some are repeated.
    """

    rows: int
    shape: str
    left_out: Mapping[str, int]
    available: Mapping[str, int]
    taken: Mapping[str, int]


@dataclass(frozen=True)
class Counts:
    """Records of a part of a data set, before any is left out for its length; the most answers that one compared prompt
    has; how many records of a kind have been left out; the shape that so many rows were read in; how many records are
    there more than once; of a mixture, its sets by name; and the responses with a label, both of each comparison among
    them."""

    demonstrations: int
    comparisons: int
    compared_prompts: int
    prompts: int
    answers: int = 2
    left_out: dict[str, int] = field(default_factory=dict)
    shape: str = ""
    rows: int = 0
    duplicates: int = 0
    sets: Mapping[str, SetCounts] = field(default_factory=dict)
    desirable: int = 0
    undesirable: int = 0

    @property
    def labelled(self) -> int:
        """Count the responses with a label."""
        return self.desirable + self.undesirable

    def rows_of(self, name: str) -> int:
        """Return how many rows of the set of this name were read; of what is no mixture, of the only one."""
        return self.sets[name].rows if name in self.sets else self.rows


@dataclass(frozen=True)
class Records:
    """The records that a stage reads: what they are called in its training and in its evaluation, how many there are, and
    the most answers that one of them has."""

    name: str
    evaluated: str
    number: int
    answers: int = 1


@dataclass(frozen=True)
class Card:
    """What the model card of a saved model says of it.

    Attributes:
        sentence: What the model is.
        scorer: Whether it is loaded as a scorer.
        starts: The names of the input that it was trained from: the first that the stage has.
        lora: The group of its adapters.
    """

    sentence: str
    scorer: bool = False
    starts: tuple[str, ...] = ("actor", "policy")
    lora: str = "lora"


@dataclass(frozen=True)
class Side:
    """One of the responses that stand side by side in a row of samples.jsonl: the key that begins its entries (`<key>`,
    `<key>_score`, `<key>_gold`), and what people call the model that gave it."""

    key: str
    label: str


def keep_config(config: Config, inputs: Mapping[str, str]) -> Config:
    """Return the configuration as it is: the default of StageKind.resolve."""
    return config


@dataclass(frozen=True)
class StageKind:
    """A kind of stage.

    Attributes:
        name: The name in `stages`, and the prefix of its directories. A kind outside this package is named by the dotted
            path of the module that defines it as KIND.
        run: The function that runs the stage, as "module:function"; the worker alone imports it.
        page: The function that writes a page of the result into the directory of a stage that is done, as
            "module:function(directory)"; the worker alone imports it. Empty where there is no such page.
        result_keys: The keys that it reads, by prefix. Of these its fingerprint holds those whose effect is `result`.
        unread_keys: Of these keys those that decide nothing with the configuration's other values, by prefix.
        schema: The dataclass of its keys, which stand in the group `section`. Where this package has no such group, as for
            another package's stage, a configuration that asks for the stage has it.
        section: The group of its training keys; None where it has none.
        metrics: What it logs, in the order of tables, beside the speed of its steps; the final ones are its result.
        more_metrics: The metrics that it logs beside `metrics`, which depend on the configuration.
        headline: The metrics that say most about it while it runs: the first that it has is shown. By default `metrics`.
        compared: The metrics that the terminal shows of a report: the first of these sets of which any point has a member.
            By default the final metrics that a sweep's table shows.
        sides: The responses of a row of its samples.jsonl.
        step: What one of its steps is called on an axis.
        inputs: The models that it starts from, in the order in which they are found.
        evaluates: The name of the input whose model it measures, where that is its purpose. What it has measured of the
            model is shown to people instead of what the stage that trained the model has measured.
        more_inputs: The models that it starts from beside `inputs`, whose number depends on the configuration.
        model_keys: The groups of the models whose shapes it needs.
        loads: The group among `model_keys` whose `path` it starts from; None where it starts from its inputs.
        trained: The ZeRO groups on which it depends what each rank saves in a checkpoint.
        roles: The models that it holds: memory and micro-batches follow from them.
        sequences: Sequences of a record of its training, where each is a sequence of its own.
        batch_key: The key of its section that says how many sequences a step takes.
        copies: How many sequences of a step are made from one record.
        updates: Optimiser steps within one of its steps.
        records: The records that it reads of a part of a data set; None where it reads no data.
        samples_responses: Whether it learns from responses that it samples, and so reads the groups `rollout` and `ppo`.
        reads: Which records these are: `demonstrations`, `comparisons`, `labelled` or `prompts`. They are encoded and
            looked at before anything starts; of a kind that says nothing here they are counted alone.
        share: Which share of `data.split` it trains on: 0 that of fine-tuning, 1 of reward modelling, 2 of policies.
        phase_flops: Operations of a step on records of so many answers, at most, of all ranks together, by phase: `train`;
            of a stage that samples, `rollout`, `score` and `update`.
        work: Its work where that is not steps over records.
        uncounted: What it does whose time no plan knows, in words; empty where there is nothing of the kind.
        resolve: The configuration as it runs on the given inputs.
        simplify: The configuration that is checked and run instead of the composed one.
        problems: Finds what its keys may not hold together; imports no torch.
        check: Looks at what it will load beside its own model and its records; may import torch. Raises ConfigError.
        measures: The stages whose training settings it uses; by default its own.
        cards: The models that it saves, by name.
        is_benchmark: Whether it measures speed on random weights instead of training: it runs alone, saves no checkpoints,
            and all keys but names enter its fingerprint.
    """

    name: str
    run: str
    result_keys: tuple[str, ...]
    unread_keys: Callable[[Config], tuple[str, ...]] = lambda config: ()
    schema: type | None = None
    section: str | None = None
    metrics: tuple[Metric, ...] = ()
    more_metrics: Callable[[Config], tuple[Metric, ...]] = lambda config: ()
    headline: tuple[str, ...] = ()
    compared: tuple[tuple[str, ...], ...] = ()
    sides: tuple[Side, ...] = ()
    step: str = "step"
    inputs: tuple[Input, ...] = ()
    evaluates: str = ""
    more_inputs: Callable[[Config], tuple[Input, ...]] = lambda config: ()
    model_keys: tuple[str, ...] = ()
    loads: str | None = None
    trained: tuple[str, ...] = ()
    roles: Callable[[Config], list[Role]] = lambda config: []
    sequences: Callable[[Config], int] = lambda config: 1
    batch_key: str = "batch_size"
    copies: Callable[[Config], int] = lambda config: 1
    updates: Callable[[Config], int] = lambda config: 1
    records: Callable[[Config, Counts], Records] | None = None
    samples_responses: bool = False
    reads: Callable[[Config], Reads] | None = None
    share: int = 2
    phase_flops: Callable[[Config, int], dict[str, int]] = lambda config, answers: {}
    work: Callable[[Config], Work] | None = None
    uncounted: Callable[[Config], str] = lambda config: ""
    resolve: Callable[[Config, Mapping[str, str]], Config] = keep_config
    simplify: Callable[[Config], Config] = lambda config: config
    problems: Callable[[Config], Iterable[ConfigError]] = lambda config: ()
    check: Callable[[Config, Mapping[str, str]], None] = lambda config, inputs: None
    measures: Callable[[Config], list[str]] | None = None
    cards: dict[str, Card] = field(default_factory=dict)
    page: str = ""
    is_benchmark: bool = False

    @property
    def trains(self) -> bool:
        """Whether it trains a model, or, as a benchmark, measures stages that do."""
        return self.section is not None or self.is_benchmark

    def step_flops(self, config: Config, answers: int) -> int:
        """Operations of a step on records of so many answers, at most."""
        return sum(self.phase_flops(config, answers).values())

    def inputs_of(self, config: Config) -> tuple[Input, ...]:
        """Return the models that it starts from with a configuration, in the order in which they are found."""
        return tuple(given for given in self.inputs if given.is_used(config))

    @property
    def samples(self) -> bool:
        """Whether it samples responses, if only to evaluate a policy, and so reads the group `rollout`."""
        return "rollout" in self.result_keys

    @property
    def samples_to_evaluate(self) -> bool:
        """Whether it trains a policy on records, and samples responses to evaluate it alone."""
        return self.samples and not self.samples_responses and bool(self.trained)

    @property
    def only_samples(self) -> bool:
        """Whether it samples and scores responses, and trains nothing."""
        return self.samples and not self.samples_responses and not self.trained

    def find_inputs(self, config: Config) -> tuple[Input, ...]:
        """Return the models that it starts from with this configuration."""
        return (*self.inputs_of(config), *self.more_inputs(config))

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages that may make its inputs."""
        return tuple(given.stage for given in self.inputs if given.stage is not None)


@cache
def kind_of(name: str) -> StageKind:
    """Import the kind of a stage by its name. Raises ImportError or AttributeError where there is none."""
    if "." not in name and name not in packages():
        raise ImportError(f"there is no stage {name}")
    kind = importlib.import_module(name if "." in name else f"{PACKAGE}.{name}").KIND
    if not isinstance(kind, StageKind) or kind.name != name:
        raise AttributeError(f"KIND of {name} is no StageKind of that name")
    return kind


def is_stage(name: str) -> bool:
    """Whether a stage of this name can be found."""
    try:
        return bool(kind_of(name))
    except (ImportError, AttributeError, TypeError, ValueError):
        return False


def is_benchmark(name: str) -> bool:
    """Whether a stage of this package measures speed. Nothing else is imported: a report may be of others' runs."""
    return name in packages() and kind_of(name).is_benchmark


@cache
def stage_kinds() -> dict[str, StageKind]:
    """Return the kinds that this package has, in the order of a pipeline: those that others need come first."""
    return {name: kind_of(name) for name in order_stages(packages())}


@cache
def packages() -> list[str]:
    """Return the packages in rlhf/stages/."""
    path = Path(__file__).resolve().parents[1] / "stages"
    return [module.name for module in pkgutil.iter_modules([str(path)]) if module.ispkg]


def metrics_of(stage: str, config: Config | None = None) -> dict[str, Metric]:
    """Return the metrics that a stage may log, by name: its own, the speed of its steps, and standard errors; with a
    configuration also those that depend on it."""
    kind = kind_of(stage)
    own = kind.metrics if config is None else (*kind.metrics, *kind.more_metrics(config))
    return {metric.name: metric for metric in (*SPEED, *own, *standard_errors(own))}


@cache
def known_metrics() -> dict[str, Metric]:
    """Return the metrics of all stages of this package, by name, as the first stage that logs each declares it."""
    found: dict[str, Metric] = {}
    for stage in stage_kinds():
        for name, metric in metrics_of(stage).items():
            found.setdefault(name, metric)
    return found


def check_metrics(stage: str, metrics: Iterable[str], config: Config | None = None) -> None:
    """Refuse a metric that the stage does not declare for this configuration. Raises KeyError."""
    if unknown := sorted(set(metrics) - set(metrics_of(stage, config))):
        raise KeyError(f"metrics that the stage {stage} does not declare in KIND.metrics: {', '.join(unknown)}")


def pipeline_parts(stages: Iterable[str]) -> list[list[str]]:
    """Group stages by how many others stand before them in a pipeline, the last of them first, benchmarks after all others.
    A stage outside this package counts as one of the last."""

    def depth(stage: str) -> int:
        return max((1 + depth(needed) for needed in kind_of(stage).needs), default=0)

    kinds = stage_kinds()
    last = max(map(depth, kinds))
    depths = {
        stage: last if stage not in kinds else -1 if kinds[stage].is_benchmark else depth(stage)
        for stage in dict.fromkeys(stages)
    }
    known = [*kinds, *(stage for stage in depths if stage not in kinds)]
    return [
        [stage for stage in known if depths.get(stage) == wanted] for wanted in sorted(set(depths.values()), reverse=True)
    ]


def order_stages(names: Iterable[str]) -> list[str]:
    """Sort stages as a pipeline has them: each after those it needs. Among all stages those that need most come first, with
    what they need before them, in its order; stages outside this package come last."""
    wanted, ordered = set(names), dict[str, None]()

    def add(name: str) -> None:
        for needed in kind_of(name).needs:
            add(needed)
        ordered.setdefault(name)

    for name in sorted({*packages(), *wanted}, key=lambda name: ("." in name, -len(kind_of(name).needs), name)):
        add(name)
    return [name for name in ordered if name in wanted]

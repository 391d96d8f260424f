"""Evaluating reward models, and an ensemble of them, on the held-out pairs of a configuration's data:

members = {"mine": Source("outputs/stages/reward-0123456789ab/model", "model")}
diagnoses = evaluate_reward_models(config, members, Asked(probes=200))
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rlhf.config.errors import ConfigError
from rlhf.config.rewards import gold_term
from rlhf.config.schema import Config, Zero
from rlhf.data.cells import CellError
from rlhf.data.dataset import Comparison, Prompt
from rlhf.data.files import Origin, read_files
from rlhf.data.records import require_records
from rlhf.data.templates import build_saved_template
from rlhf.data.tokenized import DataSource
from rlhf.engine.zero import frozen_engine
from rlhf.evaluation.reward.diagnosis import ENSEMBLE, Diagnosis, diagnose
from rlhf.evaluation.reward.probes import make_probes
from rlhf.evaluation.reward.rewardbench import RewardBench, read_rewardbench
from rlhf.evaluation.reward.scoring import Reader, read_logprobs, read_texts
from rlhf.evaluation.reward.texts import Reading, Text, collect_texts, join_readings
from rlhf.models.load import load_policy, load_scorer
from rlhf.models.preflight import check_source
from rlhf.models.source import Source
from rlhf.models.tokenizer import load_tokenizer
from rlhf.rewards.sample import Sample
from rlhf.rewards.texts import to_plain
from rlhf.rewards.total import build_text_reward
from rlhf.runtime import distributed


@contextmanager
def open_reader(source: Source, config: Config, tokens: int, scorer: bool = True) -> Iterator[Reader]:
    """Hold a reward model (`scorer`) or a policy as it reads texts, at most so many tokens in a forward pass; its memory
    is freed in the end."""
    check_source(source, config, scorer=scorer)
    tokenizer = load_tokenizer(source.path, source.key, source.revision, source.trust_remote_code, source.gguf_file)
    template = build_saved_template(config.data, tokenizer)
    zero: Zero = config.reward_zero if scorer else config.reference_zero
    model = frozen_engine((load_scorer if scorer else load_policy)(source, config, zero, 0.0), config, zero)
    try:
        yield Reader(source.path, model, template, distributed.device(config), tokens, config.reward.packing)
    finally:
        model.destroy()


@dataclass(frozen=True)
class Asked:
    """What is asked of reward models besides their scores of the held-out pairs.

    Attributes:
        policy: The policy whose log-probabilities the scores are correlated with.
        rewardbench: A file of RewardBench.
        probes: Of how many prompts probes are made.
        ensemble: Whether the mean of all models is diagnosed too.
        tokens: The tokens of a forward pass at most.
        data: The directory of a data set that a stage has made, whose pairs are read in place of the configuration's.
    """

    policy: Source | None = None
    rewardbench: str | None = None
    probes: int = 200
    ensemble: bool = False
    tokens: int = 8192
    data: str | None = None


def evaluate_reward_models(
    config: Config, members: Mapping[str, Source], asked: Asked, read: Callable[[Reader, list[Text]], Reading] = read_texts
) -> dict[str, Diagnosis]:
    """Return the diagnosis of each reward model, by its name, and, where it is asked for, of their `ensemble`.

    Args:
        config: Names the data and the lengths at which prompts are left out and responses are cut.
        members: Where each model is, by its name.
        asked: What is asked besides.
        read: Lets a model read texts.

    Raises:
        ConfigError: Data, a file or a model cannot be read.
    """
    distributed.start(config)
    source = DataSource(config, asked.data)
    dataset, config = source.dataset, source.config
    pairs = dataset.heldout.comparisons
    bench = None if asked.rewardbench is None else read_bench(asked.rewardbench)
    if bench is None:
        require_records(pairs, "comparisons", config)
    probes = list(make_probes(pairs, asked.probes))
    texts = collect_texts(pairs, probes, bench.items if bench else ())
    gold = find_gold(config, pairs) or dataset.gold
    readings = {}
    for name, member in members.items():  # one after another: only one is in memory
        with open_reader(member, config, asked.tokens) as reader:
            readings[name] = read(reader, texts)
    logprobs = None
    if asked.policy is not None:
        with open_reader(asked.policy, config, asked.tokens, scorer=False) as reader:
            logprobs = read_logprobs(reader, texts)
    groups = {name: [reading] for name, reading in readings.items()}
    groups |= {ENSEMBLE: list(readings.values())} if asked.ensemble else {}
    return {name: diagnose(join_readings(texts, own), pairs, probes, bench, gold, logprobs) for name, own in groups.items()}


def find_gold(config: Config, pairs: Sequence[Comparison]) -> Callable[[Prompt, str], float] | None:
    """Return what the reward that `gold` names says of the answers of pairs, NaN where it does not apply; None where it
    names none. Raises ConfigError for a reward model, and for a reward that fails."""
    term = gold_term(config)
    if term is None:
        return None
    if term.kind == "model":
        fix = "name a function or a service, or evaluate that model too"
        raise ConfigError("gold", config.gold, "it is a reward model, which others are not judged by here", fix)
    asked = {
        (pair.prompt, answer): Sample(to_plain(pair.prompt), answer, dict(pair.meta))
        for pair in pairs
        for answer in (pair.chosen, pair.rejected)
    }
    reward = build_text_reward("gold", term)
    try:
        reward.ask(list(asked.values()))
        scores = reward.answer()
    finally:
        reward.close()
    known = {text: math.nan if score is None else score for text, score in zip(asked, scores, strict=True)}
    return lambda prompt, response: known[prompt, response]


def read_bench(path: str) -> RewardBench:
    """Read a file of RewardBench. Raises ConfigError for one that is of another make."""
    origin = Origin("rewardbench", path)
    try:
        return read_rewardbench([cells for _, (_, cells) in read_files(origin, path)])
    except CellError as error:
        raise origin.error(f"{error.column}: {error.problem}", error.fix) from error

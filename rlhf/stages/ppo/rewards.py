"""What the rewards of a policy may not hold together, said before anything starts."""

import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path

from rlhf.config.errors import ConfigError
from rlhf.config.rewards import DEFAULTS, gold_term, is_stage_model, reward_terms, trained_terms
from rlhf.config.schema import Config, RewardTerm
from rlhf.rewards.functions import FUNCTIONS, NEEDED

# The keys of a reward that some kinds alone read, with these kinds.
READ_BY = {
    "path": ("model",), "function": ("function",), "options": ("function",), "url": ("http",), "retries": ("http",),
    "timeout_s": ("function", "http"), "members": ("ensemble",), "combine": ("ensemble",), "std_coef": ("ensemble",),
}  # fmt: skip


def reward_problems(config: Config) -> Iterator[ConfigError]:
    """Find rewards that cannot score, and keys of theirs that would not be read."""
    terms = reward_terms(config)
    gold = terms.get(str(config.gold))
    if not trained_terms(config) and not (gold is not None and is_stage_model(gold)):
        fix = "add one, as rewards.length.kind=function rewards.length.function=length"
        yield ConfigError("rewards", ",".join(terms) or "{}", "there is no reward that a policy could be trained on", fix)
    yield from term_problems(config)


def term_problems(config: Config) -> Iterator[ConfigError]:
    """Find rewards that cannot score or judge, and keys of theirs that would not be read."""
    terms = reward_terms(config)
    stage_models = [name for name, term in terms.items() if term.kind == "model" and term.path is None]
    for name in stage_models[:-1] if stage_models[-1:] == ["model"] else stage_models[1:]:
        problem, fix = "the reward stage's model is a reward already", f"give a path, or another rewards.{name}.kind"
        yield ConfigError(f"rewards.{name}.path", "null", problem, fix)
    for name, term in terms.items():
        for key, kinds in READ_BY.items():
            if term.kind not in kinds and getattr(term, key) != DEFAULTS[key]:
                fix = f"leave it out, or set its kind={' or '.join(kinds)}"
                problem = f"a reward of kind {term.kind} does not read it"
                yield ConfigError(f"rewards.{name}.{key}", getattr(term, key), problem, fix)
        if term.kind == "ensemble" and term.combine != "mean_minus_std" and term.std_coef != DEFAULTS["std_coef"]:
            problem, fix = f"combine={term.combine} does not read it", f"set rewards.{name}.combine=mean_minus_std"
            yield ConfigError(f"rewards.{name}.std_coef", term.std_coef, problem, fix)
        if term.kind == "http" and not str(term.url).startswith(("http://", "https://")):
            fix = f"give one, as rewards.{name}.url=http://127.0.0.1:8900"
            yield ConfigError(f"rewards.{name}.url", term.url, "it is no address of a service", fix)
        if term.kind == "function":
            yield from function_problems(f"rewards.{name}.function", term)
    yield from gold_problems(config)


def gold_problems(config: Config) -> Iterator[ConfigError]:
    """Find a gold reward that cannot judge."""
    gold = gold_term(config)
    if gold is None:
        return
    if is_stage_model(gold):
        problem = "that is the reward stage's model, which is trained on this data's own labels"
        yield ConfigError("gold", config.gold, problem, "name a function, or a reward with a path")
    elif config.gold not in reward_terms(config):
        yield from function_problems("gold", gold)


def function_problems(key: str, term: RewardTerm) -> Iterator[ConfigError]:
    """Find a function that is not there, or that its options do not suit; of a built-in one what it needs."""
    path, known = term.function, ", ".join(FUNCTIONS)
    named = f"name a built-in one, {known}, or give my.module:score or path/file.py:score"
    if path is None:
        yield ConfigError(key, "null", "it names no function", named)
        return
    origin, colon, name = path.rpartition(":")
    if not colon and path not in FUNCTIONS:
        yield ConfigError(key, path, "there is no such function", named)
    elif colon and (not name.isidentifier() or not origin):
        yield ConfigError(key, path, "it names no function", named)
    elif origin.endswith(".py") and not Path(origin).expanduser().is_file():
        yield ConfigError(key, path, "there is no such file", "give its path from where the command is typed")
    elif not colon:
        module, package = NEEDED.get(path, ("json", ""))
        if importlib.util.find_spec(module) is None:
            yield ConfigError(key, path, f"it needs the package {package}", f"pip install 'rlhf[rewards]', or {package}")
        try:
            inspect.signature(FUNCTIONS[path]).bind([], [], [], **(term.options or {}))
        except TypeError as error:
            takes = list(inspect.signature(FUNCTIONS[path]).parameters)[3:]
            options = f"{key.rpartition('.')[0] or 'rewards.NAME'}.options"
            fix = f"it takes {', '.join(takes)}, as {options}.{takes[0]}=..." if takes else f"leave {options} out"
            yield ConfigError(options, term.options, str(error), fix)


def check_functions(config: Config) -> None:
    """Import the functions that are not built in, each in a process of its own. Raises ConfigError for the first that
    cannot be."""
    from rlhf.rewards.function import FunctionReward

    named = {f"rewards.{name}.function": term for name, term in reward_terms(config).items() if term.kind == "function"}
    gold = gold_term(config)
    if gold is not None and config.gold not in reward_terms(config):
        named["gold"] = gold
    for key, term in named.items():
        if ":" in str(term.function):
            reward = FunctionReward(key, term)
            reward.load()
            reward.close()

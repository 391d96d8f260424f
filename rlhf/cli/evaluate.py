"""Evaluate policies, and compare them.

    python -m rlhf evaluate outputs/runs/latest                  # the SFT model and the policy of a run, beside each other
    python -m rlhf evaluate outputs/sweeps/kl                    # all policies of a sweep
    python -m rlhf evaluate DIR DIR org/model rollout.temperature=0.7    # stages, models, hub ids; keys as anywhere
    python -m rlhf evaluate DIR evaluate.samples=16              # pass@k and best-of-n from 16 answers to each prompt
    python -m rlhf evaluate DIR evaluate.prompts=deepspeed-chat  # DeepSpeed-Chat's six prompts, answers side by side
    python -m rlhf evaluate DIR evaluate.lm_eval=[hellaswag]     # tasks of lm-evaluation-harness (the extra lm-eval)
    python -m rlhf evaluate DIR --json                           # for scripts
    python -m rlhf evaluate outputs/stages/reward-0123456789ab   # a reward model, with the flags of `evaluate-reward`

Prompts, sampling, template, rewards and gold are those of the stage that trained the last policy with a reward, or else
those of the overrides. A policy is evaluated once for all that ask the same of it: its answers are kept in
outputs/stages/evaluate-*, and win rates are counted from them; a page and answers.jsonl have them beside each other. Of
reward models it does what `evaluate-reward` does.
"""

import contextlib
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import OmegaConf

from rlhf.cli import evaluate_reward
from rlhf.cli.arguments import run_verb, unknown_flag
from rlhf.cli.prepare import build_point, count_heldout, plan_graph
from rlhf.cli.run import check_tasks, exit_code, present_plan
from rlhf.config.directories import PAGE, key_of
from rlhf.config.errors import ConfigError
from rlhf.config.points import compose_config
from rlhf.config.rewards import is_stage_model, reward_terms
from rlhf.config.schema import Config
from rlhf.config.sections import config_type
from rlhf.config.terminal import Terminal
from rlhf.evaluation.answers import FILE, read_answers, write_rows
from rlhf.evaluation.beside import align_answers
from rlhf.evaluation.judge import ORDERS, Endpoint, Question, longest_question, make_questions
from rlhf.evaluation.pairs import have_same_prompts
from rlhf.evaluation.targets import Target, find_models, find_targets
from rlhf.experiment.fingerprint import remember_files
from rlhf.experiment.stage_directory import StageDirectory
from rlhf.experiment.store import write_atomic
from rlhf.experiment.summary import print_failures
from rlhf.experiment.sweep import Outcome, Task, build_task_graph, lay_out
from rlhf.launch import execute
from rlhf.planner.cost import JudgeCalls
from rlhf.stages.evaluate import KIND

if TYPE_CHECKING:
    from rlhf.evaluation.report import Report

# What an evaluation takes from where it runs, and not from the stage that trained the policy.
OWN = ("evaluate", "dry_run", "launcher", "checkpoint", "tracking", "plan")


def main(arguments: list[str]) -> int:
    """Evaluate what the arguments name; returns the exit code: 0, 1 if an evaluation failed, 2 for bad input, 130 if it was
    stopped."""
    return run_verb(evaluate_models, arguments, str(__doc__))


def evaluate_models(arguments: list[str], console: Terminal) -> int:
    """Evaluate the policies, or the reward models, that the arguments name; returns the exit code. Raises ConfigError."""
    known = find_first(arguments)
    if any(target.is_scorer for targets in known.values() for target in targets):
        return evaluate_reward.evaluate(arguments, console)
    directories, overrides, as_json = read_arguments(arguments)
    targets = find_targets(directories, known)
    with remember_files():
        return evaluate(targets, overrides, as_json)


def find_first(arguments: list[str]) -> dict[str, list[Target]]:
    """Return the models of the first directory that is named, which decides what all flags mean: of a reward model they are
    those of `evaluate-reward`. Empty where it names none, which is said when the flags have been read."""
    first = next((word for word in arguments if Path(word).expanduser().is_dir()), None)
    try:
        return {} if first is None else {first: list(find_models(first))}
    except ConfigError:
        return {}


def read_arguments(arguments: list[str]) -> tuple[list[str], list[str], bool]:
    """Return the models, the overrides, and whether JSON is wanted. Raises ConfigError."""
    flags = [word for word in arguments if word.startswith("-")]
    if unknown := [flag for flag in flags if flag != "--json"]:
        raise unknown_flag(unknown[0], "evaluate")
    words = [word for word in arguments if word not in flags]
    models = [word for word in words if Path(word).expanduser().exists() or "=" not in word]
    if not models:
        fix = "write `python -m rlhf evaluate outputs/runs/latest`"
        raise ConfigError("evaluate", "nothing", "it takes a run, a sweep, a stage, a model or a hub id, or several", fix)
    return models, [word for word in words if word not in models], bool(flags)


def evaluate(targets: list[Target], overrides: list[str], as_json: bool) -> int:
    """Evaluate policies, as far as they are not yet, and show what came out."""
    # With --json nothing else goes to standard output.
    console = Terminal(stderr=True, soft_wrap=True) if as_json else Terminal()
    configs = [config_for(target, targets, overrides, console) for target in targets]
    named = list(zip(targets, configs, strict=True))
    points = [build_point(config, [], Path(config.output_root) / target.name) for target, config in named]
    tasks = lay_out(build_task_graph(points))
    waiting = [task for task in tasks if not task.node.directory.done]
    check_tasks(tasks, waiting)
    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        if waiting or configs[0].dry_run:
            by_key = {task.key: task for task in tasks}
            compared = [by_key[point.stages[-1].fingerprint] for point in points]  # two policies may be one model
            plan = replace(plan_graph(points, tasks, waiting), judge=plan_judge(configs[0], compared))
            present_plan(plan, lambda: None, console)
        if configs[0].dry_run:
            return 0
        outcomes = {task.key: Outcome("reused") for task in tasks if task not in waiting}
        outcomes |= execute(waiting, console) if waiting else {}
    print_failures(tasks, outcomes, Terminal(stderr=True, soft_wrap=True))
    nodes = [point.stages[-1] for point in points]
    done = [(t, n) for t, n in zip(targets, nodes, strict=True) if outcomes[n.fingerprint].good]
    if done:
        show(configs[0], [target for target, _ in done], [node.directory for _, node in done], as_json)
    return exit_code({outcome.state for outcome in outcomes.values()})


def plan_judge(config: Config, tasks: Sequence[Task]) -> JudgeCalls | None:
    """Return the calls of the judge of each two policies' answers: of answers that are not made yet as many as there can
    be. None without a judge. Raises ConfigError for more than `evaluate.judge.max_calls`."""
    endpoint = open_judge(config)
    if endpoint is None:
        return None
    questions, unmade = list[Question](), 0
    for pair in combinations(tasks, 2):
        if all(task.node.directory.done for task in pair):
            first, second = (read_answers(task.node.directory.path) for task in pair)
            both = make_questions(first, second) if have_same_prompts(first, second) else []
            questions += [question for orders in both for question in orders]
            continue
        prompts = min(count_heldout(task) for task in pair)
        if prompts == 0:
            return JudgeCalls(str(config.evaluate.judge.model), None)
        unmade += ORDERS * prompts * config.evaluate.samples
    return endpoint.plan_calls(questions, unmade, longest_question(config))


def open_judge(config: Config) -> Endpoint | None:
    """Return the judge of a configuration, with the replies that are kept; None where it has none."""
    judge = config.evaluate.judge
    return None if judge.url is None else Endpoint(judge, Path(config.output_root) / "judgements")


def config_for(target: Target, targets: list[Target], overrides: list[str], console: Terminal) -> Config:
    """Return the configuration of the evaluation of a policy: that of the stage which trained the last of the policies that
    has a reward, with what was typed. Raises ConfigError."""
    typed = compose_config("stage=evaluate", *overrides)
    known = [other for other in targets if other.config is not None]
    origin = next((other for other in reversed(known) if other.reward), known[0] if known else None)
    config = typed if origin is None or origin.config is None else join(origin.config, typed, overrides)
    own = replace(config.evaluate, policy=target.path)
    reward = config.ppo.reward or (None if origin is None else origin.reward)
    config = replace(config, stages=[KIND.name], evaluate=own, ppo=replace(config.ppo, reward=reward))
    return config if reward is not None else without_stage_models(config, console)


def join(trained: Mapping[str, Any], typed: Config, overrides: list[str]) -> Config:
    """Return the configuration of a stage, perhaps of another release, with the keys and groups that were typed, and with
    what an evaluation has of its own. Raises ConfigError for a key that decides an evaluation and is gone."""
    new = asdict(typed)
    values = take_over(deepcopy(new), trained, KIND.result_keys)
    copy_keys(values, new, OWN)
    for word in overrides:
        group, _, key = key_of(word).partition(".")
        if group not in new:
            problem = "a preset says how models are trained, which is done"
            raise ConfigError("argument", word, problem, "give groups and keys, as data=... or rollout.top_p=0.9")
        if group != "rewards" or not key:
            copy_keys(values, new, (key_of(word),))
        elif (name := key.partition(".")[0]) in new["rewards"]:
            values["rewards"][name] = new["rewards"][name]
        else:
            values["rewards"].pop(name, None)
    return build_config(values)


def take_over(values: dict[str, Any], trained: Mapping[str, Any], decisive: tuple[str, ...]) -> dict[str, Any]:
    """Return the keys of this release with the values of a stage. Raises ConfigError for a group of `decisive` that has
    another key."""
    for group, known in trained.items():
        if not isinstance(known, dict) or group == "rewards" or group not in values:
            values |= {group: known} if group in values else {}
            continue
        if group in decisive and (unknown := sorted(set(known) - set(values[group]))):
            problem = "the stage that trained the policy has this key, and this release has not"
            fix = "evaluate with the release that trained it"
            raise ConfigError(f"{group}.{unknown[0]}", known[unknown[0]], problem, fix)
        values[group] |= {key: value for key, value in known.items() if key in values[group]}
    return values


def build_config(values: dict[str, Any]) -> Config:
    """Return the configuration of an evaluation with these values."""
    values = values | {"stages": [KIND.name]}
    merged = OmegaConf.merge(OmegaConf.structured(config_type([KIND.name], values["rewards"])), values)
    return cast(Config, OmegaConf.to_object(merged))


def copy_keys(values: dict[str, Any], new: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Take over keys of another configuration; of a group that is chosen for a part, as rollout/length, all of it."""
    for key in keys:
        *groups, name = key.split(".")
        target, source = values, new
        for group in groups:
            target, source = target[group], source[group]
        if name in source:
            target[name] = source[name]
        else:
            target |= source


def without_stage_models(config: Config, console: Terminal) -> Config:
    """Return the configuration without rewards that are the reward stage's model, since none is known here."""
    names = [name for name, term in reward_terms(config).items() if is_stage_model(term)]
    if not names:
        return config
    told = ", ".join(f"rewards.{name}" for name in names)
    console.print(f"no reward model is known, so {told} judges nothing: give ppo.reward=DIR for one")
    kept = {name: term for name, term in asdict(config)["rewards"].items() if name not in names}
    return build_config(asdict(config) | {"rewards": kept})


def show(config: Config, targets: list[Target], directories: list[StageDirectory], as_json: bool) -> None:
    """Print what evaluations came to, as tables or as JSON. Raises ConfigError where a judge does not answer."""
    from rlhf.evaluation.report import build_report, describe_report, print_report

    told = Terminal(stderr=True, soft_wrap=True) if as_json else Terminal()
    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
        report = build_report([target.name for target in targets], directories, open_judge(config), told)
    page = save_page(config, report)
    if as_json:
        print(json.dumps(describe_report(report), indent=2))
    else:
        print_report(report, Terminal())
    told.print(f"page: {page}", soft_wrap=True)


def save_page(config: Config, report: "Report") -> Path:
    """Keep the page of some evaluations, and their answers beside each other as answers.jsonl; returns the page's path."""
    from rlhf.report.policies import write_policies_page

    answers = list(align_answers([(model.name, model.rows) for model in report.models]))
    named = json.dumps([[model.name, model.fingerprint] for model in report.models])
    digest = hashlib.sha256(named.encode()).hexdigest()
    directory = Path(config.output_root) / "evaluations" / f"policies-{digest[:12]}"
    write_atomic(directory / PAGE, write_policies_page(report, answers))
    write_rows(directory / FILE, [beside.describe() for beside in answers], "w")
    return directory / PAGE

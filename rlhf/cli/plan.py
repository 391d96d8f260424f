"""Tell what a command would take, before a GPU is asked for: memory, hours and dollars of every stage.

    python -m rlhf plan model=opt-13b hardware=dgx8          # does it fit, how long does it take, what does it cost
    python -m rlhf plan -m +sweeps=kl                        # of a sweep: stages that points share count once
    python -m rlhf plan model=opt-66b hardware=dgx8 --json   # one object for scripts; exit code 2 if something does not fit
    python -m rlhf plan --fit model=opt-66b                  # which hardware runs it, at what time and price
    python -m rlhf plan --largest hardware=a100-80g          # the largest model of each family
    python -m rlhf plan --calibrate outputs/                 # this machine's own constants, from its finished stages
    python -m rlhf plan --published                          # DeepSpeed-Chat's published times beside planned ones
    python -m rlhf plan --fit model=opt-66b --json           # a table as a list of objects, one a row

Overrides are those of `python -m rlhf`. Nothing is loaded, downloaded or written (but the file that --calibrate writes).
No GPU is needed. Exit codes: 0 if all fits, 2 if not or for bad input.
"""

import json
import sys
from pathlib import Path

from rlhf.cli.arguments import read_overrides, run_verb
from rlhf.cli.changes import check_plan
from rlhf.cli.prepare import plan_graph
from rlhf.cli.publish import print_pushes
from rlhf.cli.run import compose_points, print_cost
from rlhf.config.errors import ConfigError
from rlhf.config.points import Composer
from rlhf.config.terminal import Terminal, open_table_console
from rlhf.experiment.plan import GraphPlan, describe_plan, print_plan, print_stage
from rlhf.experiment.sweep import build_task_graph, lay_out
from rlhf.tracking.hub import plan_pushes

# Flags of this verb, each with the function that answers it instead of planning the command.
TABLES = ("--fit", "--largest", "--published", "--calibrate")


def main(arguments: list[str]) -> int:
    """Print the plan that the arguments ask for; returns the exit code."""
    return run_verb(plan, arguments, str(__doc__))


def plan(arguments: list[str], console: Terminal) -> int:
    """Print the plan that the arguments ask for; returns the exit code. Raises ConfigError."""
    as_json = "--json" in arguments
    if tables := [word for word in arguments if word in TABLES]:
        return show_table(tables[0], [word for word in arguments if word not in (tables[0], "--json")], as_json)
    return show_plan(make_plan([word for word in arguments if word != "--json"]), as_json)


def make_plan(words: list[str]) -> GraphPlan:
    """Compose what the overrides describe, and plan it. Raises ConfigError."""
    # Nothing is to run: what needs devices, the network or finished stages is not looked at.
    is_typed = any(word.startswith("dry_run=") for word in words)
    command = read_overrides(words if is_typed else [*words, "dry_run=true"], "plan")
    sys.argv[1:] = command.words
    with Composer(command) as composer:
        points, _ = compose_points(composer)
    tasks = lay_out(build_task_graph(points))
    return plan_graph(points, tasks, [task for task in tasks if not task.node.directory.done])


def show_plan(plan: GraphPlan, as_json: bool) -> int:
    """Print a plan, and what is wrong with it on standard error; returns the exit code."""
    problems = check_plan(plan)
    if as_json:
        repos = {push.task.node.directory.path.name: push.repo for push in plan_pushes(plan.points, plan.tasks)}
        print(json.dumps(describe_plan(plan) | ({"pushes": repos} if repos else {}), indent=1))
    else:
        console = open_table_console()
        print_plan(plan, console)
        for task in plan.tasks if len(plan.points) == 1 else ():
            if task.key in plan.waiting:
                console.print()
                print_stage(task, plan.plans[task.key], console)
        print_pushes(plan_pushes(plan.points, plan.tasks), console)
        print_cost(len(plan.points), console)
    errors = Terminal(stderr=True, soft_wrap=True)
    for names, error in problems:
        where = f"{names}: " if len(plan.points) > 1 else ""
        errors.print_errors(f"{where}{error}")
    return 2 if problems else 0


def show_table(flag: str, words: list[str], as_json: bool) -> int:
    """Answer one of the flags that stand for a table of several plans; returns the exit code."""
    if flags := [word for word in words if word.startswith("-")]:
        raise ConfigError("argument", flags[0], f"{flag} takes overrides, and no other flag but --json", "leave it out")
    from rlhf.cli import tables
    from rlhf.cli.calibrate import calibrate

    console = open_table_console()
    if flag == "--calibrate":
        return calibrate([Path(word) for word in words], console)
    if as_json:
        rows = {"--fit": tables.list_fits, "--largest": tables.list_largest, "--published": tables.list_published}[flag]
        print(json.dumps(list(rows(words)), indent=1))
        return 0
    make = {"--fit": tables.fit_table, "--largest": tables.largest_table, "--published": tables.published_table}[flag]
    console.print(make(words))
    return 0

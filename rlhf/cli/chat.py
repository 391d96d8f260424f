"""Talk to a model that a run has trained, or to any other.

    python -m rlhf chat outputs/runs/latest                      # on the terminal; /help lists its commands
    python -m rlhf chat outputs/runs/latest --beside sft         # beside the SFT model (base: what that began as)
    python -m rlhf chat DIR rollout.temperature=0.7 rollout.max_new_tokens=200 hardware=a100-80g
    python -m rlhf chat DIR --prompt "Why is the sky blue?" --seed 1     # prints the answer alone, and the same one again
    python -m rlhf chat DIR --prompts questions.txt > answers.jsonl      # a question a line, or JSON Lines with `prompt`
    echo "Why?" | python -m rlhf chat DIR                                # a turn of one conversation a line
    python -m rlhf chat --web outputs/runs/latest --beside sft   # a page on which people judge two models, blind
    python -m rlhf chat --web --label 4 outputs/stages/evaluate-0123456789ab    # a page on which people rank responses

DIR is a run or a point of a sweep (its last policy), a stage, a model's directory, a .gguf file or a hub id. A stage's
model is sampled as in its training, any other at temperature 1 with 512 tokens at most, unless rollout.* says otherwise.

--beside MODEL    a second model, which is asked the same: sft, base, or what DIR may be
--system TEXT     the system message
--seed N          the random numbers; without it they are new each time, and said
--reward DIR      the reward model that /score asks, in place of those that the model was trained on
--score           with --prompts: add the rewards of each answer
--transcript FILE write the conversation there (on a terminal: to OUTPUT_ROOT/chats, unless told otherwise; none: nowhere)
--web             a page for this machine alone, unless --host and --port say otherwise; what people prefer is added to
                  --output FILE (OUTPUT_ROOT/feedback/preferences.jsonl), which data.files.train reads
--label K         with --web: in place of models, DIR and .jsonl files hold sampled responses (a stage that evaluates or
                  trains, a run, rows of `prompt` and `responses`); people rank K of them to each prompt, blind. Two make
                  pairs, more make rankings (OUTPUT_ROOT/feedback/rankings.jsonl). --seed (0) draws which, and the order
"""

import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.chat.preferences import append_records
from rlhf.cli.arguments import Arguments, check_port, run_verb, split_words
from rlhf.cli.policies import find_policies, load_models
from rlhf.config.errors import ConfigError, raise_problems
from rlhf.config.terminal import Terminal, plural
from rlhf.experiment.policies import Policy

if TYPE_CHECKING:
    from rlhf.chat.page import Site
    from rlhf.chat.session import Session

# Seeds that are drawn are short enough to be typed again.
SEEDS = 10**6
# Responses that a person can rank.
MOST = 2, 9


def main(arguments: list[str]) -> int:
    """Talk; returns the exit code: 0, 2 for bad input, 130 where Ctrl-C ends a script."""
    try:
        return run_verb(talk, arguments, str(__doc__))
    except BrokenPipeError:  # whoever read the answers has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def talk(arguments: list[str], console: Terminal) -> int:
    """Talk as the arguments say; returns the exit code. Raises ConfigError."""
    return chat(read_arguments(arguments), console, Terminal(stderr=True, soft_wrap=True))


def read_arguments(arguments: list[str]) -> Any:
    """Return the flags, the models and the overrides. Raises ConfigError."""
    parser = Arguments("chat")
    parser.add_argument("words", nargs="*")
    for flag in ("--beside", "--system", "--reward", "--prompt", "--prompts", "--transcript", "--output"):
        parser.add_argument(flag)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--label", type=int)
    parser.add_argument("--score", action="store_true")
    parser.add_argument("--web", action="store_true")
    parser.add_address(8080)
    given = parser.parse_intermixed_args(arguments)
    given.models, given.overrides = split_words(given.words)
    raise_problems(find_problems(given))
    if given.seed is None:  # who ranks goes on where the last session ended, so that it takes the same numbers
        given.seed = 0 if given.label is not None else secrets.randbelow(SEEDS)
    return given


def find_problems(given: Any) -> Iterator[ConfigError]:
    """Find flags that are wrong, or that do nothing beside the others."""
    if given.label is not None:
        yield from find_label_problems(given)
        return
    if not given.models or (len(given.models) > 1 and not given.web):
        fix = "give one, as `python -m rlhf chat outputs/runs/latest`; a second one as --beside DIR2"
        yield ConfigError("chat", " ".join(given.models), f"{len(given.models)} models are named", fix)
    if given.web and len(given.models) == 1 and given.beside is None:
        fix = "give --beside sft, or several models"
        yield ConfigError("--web", "", "two models are compared, and one is named", fix)
    if given.prompt is not None and given.prompts is not None:
        yield ConfigError("--prompts", given.prompts, "--prompt is given too", "leave one of them out")
    if given.score and given.prompts is None:
        fix = "ask /score in the conversation"
        yield ConfigError("--score", "", "it adds rewards to the records of --prompts", fix)
    if given.seed is not None and given.seed < 0:
        yield ConfigError("--seed", given.seed, "a seed is at least 0", "give another")
    unread = ("prompt", "prompts", "transcript", "reward") if given.web else ("output",)
    for name in unread:
        if (value := getattr(given, name)) is not None:
            problem = "it does nothing with --web" if given.web else "it is for --web"
            yield ConfigError(f"--{name}", value, problem, "leave it out")
    if not given.web and (given.host, given.port) != ("127.0.0.1", 8080):
        yield ConfigError("--host", f"{given.host} --port {given.port}", "they are for --web", "leave them out")


def find_label_problems(given: Any) -> Iterator[ConfigError]:
    """Find what is wrong beside --label, which samples nothing."""
    if not given.web:
        yield ConfigError("--label", given.label, "it is a page", "add --web")
    if not MOST[0] <= given.label <= MOST[1]:
        yield ConfigError("--label", given.label, f"people rank {MOST[0]} to {MOST[1]} responses", "give such a number")
    if not given.models:
        yield ConfigError("--label", given.label, "nothing is named that holds responses", "name a stage or a .jsonl file")
    if given.seed is not None and given.seed < 0:
        yield ConfigError("--seed", given.seed, "a seed is at least 0", "give another")
    for name in ("beside", "system", "reward", "prompt", "prompts", "transcript"):
        if (value := getattr(given, name)) is not None:
            yield ConfigError(f"--{name}", value, "it does nothing with --label", "leave it out")
    for word in given.overrides:
        if not word.startswith("output_root="):
            yield ConfigError("argument", word, "it does nothing with --label", "leave it out")


def chat(given: Any, console: Terminal, errors: Terminal) -> int:
    """Talk as the flags say; returns the exit code."""
    if given.web:
        (serve_page if given.label is None else serve_labels)(given, console)
        return 0
    policies = find_policies(given.models, given.beside, "chat")
    session = build_session(given, policies, console, errors)
    from rlhf.chat.scripts import answer_file, answer_prompt
    from rlhf.chat.session import read_terminal

    if given.prompt is not None:
        answer_prompt(session, given.prompt)
    elif given.prompts is not None:
        answer_file(session, given.prompts, given.score)
    elif not sys.stdin.isatty():
        session.run(sys.stdin)
    else:
        greet(session, given, errors)
        session.run(read_terminal())
    return 0


def greet(session: "Session", given: Any, errors: Terminal) -> None:
    """Say who answers, how, and where the conversation is written."""
    for talk in session.conversations:
        how = f"temperature {talk.rollout.temperature:g}" if talk.rollout.do_sample else "the likeliest tokens"
        where = f"{talk.model.policy.name} ({talk.model.policy.path})"
        errors.print(f"{where} on {talk.model.device}: {how}, {talk.rollout.max_new_tokens} tokens at most")
    written = "" if session.transcript is None else f"; written to {session.transcript}"
    errors.print(f"--seed {given.seed}{written}; /help lists the commands")


def build_session(given: Any, policies: Sequence[Policy], console: Terminal, errors: Terminal) -> "Session":
    """Load the models. Raises ConfigError where one cannot be loaded."""
    loaded = load_models(policies, given.overrides, are_compared=True)
    from rlhf.chat.conversation import Conversation  # which imports torch
    from rlhf.chat.scores import Scorer
    from rlhf.chat.session import Session

    talks = [Conversation(model, config.rollout, given.seed, given.system) for model, config in loaded]
    transcript = None if given.transcript in (None, "none") else Path(given.transcript).expanduser()
    is_dialogue = given.prompt is None and given.prompts is None and sys.stdin.isatty()
    if is_dialogue and given.transcript is None:
        name = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{given.seed}.jsonl"
        transcript = Path(loaded[0][1].output_root) / "chats" / name
    config = loaded[0][1]
    return Session(talks, lambda: Scorer(policies[0], config, given.reward), console, errors, transcript)


def serve_page(given: Any, console: Terminal) -> None:
    """Serve the page on which people judge. Raises ConfigError where it cannot be served."""
    check_port(given.port)
    policies = find_policies(given.models, given.beside, "chat")

    from rlhf.chat.http import check_packages, open_socket

    check_packages("--web")
    with open_socket(given.host, given.port) as listening:
        loaded = load_models(policies, given.overrides, are_compared=True)
        from rlhf.chat.judging import Rooms

        config = loaded[0][1]
        default = Path(config.output_root) / "feedback" / "preferences.jsonl"
        output = default if given.output is None else Path(given.output).expanduser()
        append_records(output, [])  # where it cannot be written, nobody should begin to judge
        rooms = Rooms([(model, config.rollout) for model, config in loaded], given.seed, output, given.system)
        console.print(f"{' and '.join(policy.name for policy in policies)}, --seed {given.seed}; records go to {output}")
        serve_site(rooms, given.host, listening, console)


def serve_labels(given: Any, console: Terminal) -> None:
    """Serve the page on which people rank the responses of a pool. Raises ConfigError where it cannot be served."""
    check_port(given.port)

    from rlhf.chat.http import check_packages, open_socket
    from rlhf.chat.labelling import Labels, check_output
    from rlhf.chat.pool import read_pool
    from rlhf.config.points import compose_config

    check_packages("--web")
    name = "preferences.jsonl" if given.label == MOST[0] else "rankings.jsonl"
    default = Path(compose_config(*given.overrides).output_root) / "feedback" / name
    output = default if given.output is None else Path(given.output).expanduser()
    pool = read_pool(given.models, given.label, given.seed)
    check_output(output, given.label)
    append_records(output, [])
    left_out = f" ({pool.left_out:,} more have no two different responses)" if pool.left_out else ""
    with open_socket(given.host, given.port) as listening:
        told = f"{plural(len(pool.items), 'prompt', ',')}{left_out}, --seed {given.seed}; records go to {output}"
        console.print(told)
        serve_site(Labels(pool.items, given.label, given.seed, output), given.host, listening, console)


def serve_site(site: "Site", host: str, listening: socket.socket, console: Terminal) -> None:
    """Say the address of a page, and serve it until Ctrl-C."""
    from rlhf.chat.http import is_loopback, serve
    from rlhf.chat.page import build_page

    token, name = secrets.token_urlsafe(16), host if host != "0.0.0.0" else socket.gethostname()
    console.print(f"http://{name}:{listening.getsockname()[1]}/?token={token}")
    if not is_loopback(host):
        console.print("whoever has this address may judge; it is sent unencrypted")
    serve(build_page(site, token), listening)

"""Serve a model over HTTP, as clients of OpenAI's API ask for it.

    python -m rlhf serve outputs/runs/latest                # on http://127.0.0.1:8000/v1; the model is called ppo
    python -m rlhf serve DIR DIR2 --host 0.0.0.0 --port 9000 hardware=a100-80g    # several, for other machines, on a GPU

DIR is a run or a point of a sweep (its last policy), a stage, a model's directory, a .gguf file or a hub id. It answers
/v1/models, /v1/chat/completions by the model's own template, and /v1/completions, whole or as a stream. The same seed gives
the same answer. What a request leaves out is as in the stage's rollouts, or as rollout.* says. Requests must bring the key
in the environment variable RLHF_API_KEY (Authorization: Bearer KEY), if there is one.
"""

import os
from typing import Any

from rlhf.cli.arguments import Arguments, check_port, run_verb, split_words
from rlhf.cli.policies import find_policies, load_models
from rlhf.config.errors import ConfigError
from rlhf.config.terminal import Terminal


def main(arguments: list[str]) -> int:
    """Serve until interrupted; returns the exit code: 0, or 2 for bad input."""
    return run_verb(serve_models, arguments, str(__doc__), interrupted=0)


def serve_models(arguments: list[str], console: Terminal) -> None:
    """Load the models, then answer requests. Raises ConfigError."""
    parser = Arguments("serve")
    parser.add_argument("words", nargs="*")
    parser.add_address(8000)
    given: Any = parser.parse_intermixed_args(arguments)
    check_port(given.port)
    named, overrides = split_words(given.words)
    if not named:
        raise ConfigError("serve", "", "no model is named", "give one, as `python -m rlhf serve outputs/runs/latest`")
    if len(set(named)) < len(named):
        raise ConfigError("serve", " ".join(named), "a model is named twice", "name it once")
    policies = find_policies(named, None, "serve")

    from rlhf.chat.http import check_packages, is_loopback, open_socket, serve

    check_packages("serve")
    with open_socket(given.host, given.port) as listening:
        loaded = load_models(policies, overrides, are_compared=False)
        from rlhf.chat.openai import Endpoint, build_app

        models = {model.policy.name: (model, config.rollout) for model, config in loaded}
        key = os.environ.get("RLHF_API_KEY") or None
        address = f"http://{given.host}:{listening.getsockname()[1]}/v1"
        console.print(f"{', '.join(models)} at {address}, until Ctrl-C")
        if key is None and not is_loopback(given.host):
            console.print("whoever reaches this address may use it: RLHF_API_KEY is not set")
        serve(build_app(Endpoint(models, key)), listening)

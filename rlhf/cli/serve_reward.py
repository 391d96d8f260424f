"""Serve a reward model over HTTP, so that the points of a sweep share one.

    python -m rlhf serve-reward outputs/stages/reward-0123456789ab              # on http://127.0.0.1:8900
    python -m rlhf serve-reward DIR --host 0.0.0.0 --port 9000 hardware=a100-80g    # for other machines, on a GPU

DIR is a stage's directory, a model's directory or a hub id of a sequence classifier with one label. The stage's template
formats prompts; for another model it is that of the overrides, as data.prompt_format=... A run asks the service where it
has rewards.NAME.kind=http rewards.NAME.url=http://HOST:PORT. Whoever reaches the address may use it: it asks for no
password.
"""

import argparse
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import NoReturn

from rlhf.config.checks import check_devices
from rlhf.config.errors import ConfigError
from rlhf.config.points import compose_config
from rlhf.config.schema import Config
from rlhf.config.terminal import Terminal
from rlhf.experiment.files import parse_json
from rlhf.experiment.fingerprint import content_id
from rlhf.experiment.graph import model_path
from rlhf.experiment.stage_directory import StageDirectory

PORTS = 65535


class Arguments(argparse.ArgumentParser):
    """The verb's own flags; what is wrong with them is raised."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print before it leaves."""
        raise ConfigError("argument", message, "it cannot be read", "`python -m rlhf serve-reward --help` says more")


def main(arguments: list[str]) -> int:
    """Serve until interrupted; returns the exit code: 0, or 2 for bad input."""
    console, errors = Terminal(soft_wrap=True), Terminal(stderr=True, soft_wrap=True)
    if {"-h", "--help"} & set(arguments):
        console.print(__doc__)
        return 0
    try:
        serve(arguments, console)
    except ConfigError as error:
        errors.print_errors(error)
        return 2
    except KeyboardInterrupt:
        errors.print("interrupted")
    return 0


def serve(arguments: list[str], console: Terminal) -> None:
    """Load the model, then answer requests."""
    parser = Arguments(add_help=False)
    parser.add_argument("model")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8900)
    parser.add_argument("--batch-size", type=int, default=16)
    given = parser.parse_intermixed_args(arguments)
    if not 0 <= given.port <= PORTS or given.batch_size < 1:
        problem = "a port is at most 65535, and a batch holds at least 1 sequence"
        raise ConfigError("argument", f"--port {given.port} --batch-size {given.batch_size}", problem, "give others")
    config = with_template(compose_config("stage=reward", *given.overrides), given.model)
    check_devices(config)
    os.environ.setdefault("DS_ACCELERATOR", config.hardware.device)

    from rlhf.models.preflight import check_source  # which imports torch
    from rlhf.models.source import Source
    from rlhf.rewards.service import ModelScorer, build_server
    from rlhf.runtime.distributed import silence_libraries

    silence_libraries()
    source = Source(model_path(given.model), "serve-reward")
    check_source(source, config, scorer=True)
    about = {"model": given.model, "identity": content_id(given.model, "serve-reward")}
    try:
        server = build_server(ModelScorer(source, config, given.batch_size), about, (given.host, given.port))
    except (OSError, OverflowError) as error:
        fix = "give another one, as --port 8901"
        raise ConfigError("argument", f"--port {given.port}", f"it cannot be listened on ({error})", fix) from error
    with server:
        console.print(f"{given.model} at http://{given.host}:{server.server_port}, until Ctrl-C", highlight=False)
        server.serve_forever()


def with_template(config: Config, model: str) -> Config:
    """Return a configuration with the keys of the group `data` of the stage that made a model, which format its prompts."""
    path = Path(model).expanduser()
    for file in (StageDirectory(directory).spec_file for directory in (path, path.parent)):
        if file.is_file():
            found, known = parse_json(file.read_text())["config"]["data"], {field.name for field in fields(config.data)}
            given = {key: value for key, value in found.items() if key in known and not isinstance(value, dict)}
            return replace(config, data=replace(config.data, **given))
    return config

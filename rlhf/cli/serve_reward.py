"""Serve a reward model over HTTP, so that the points of a sweep share one.

    python -m rlhf serve-reward outputs/stages/reward-0123456789ab              # on http://127.0.0.1:8900
    python -m rlhf serve-reward DIR --host 0.0.0.0 --port 9000 hardware=a100-80g    # for other machines, on a GPU

DIR is a stage's directory, a model's directory or a hub id of a sequence classifier with one label. The stage's template
formats prompts; for another model it is that of the overrides, as data.prompt_format=... A run asks the service where it
has rewards.NAME.kind=http rewards.NAME.url=http://HOST:PORT. Whoever reaches the address may use it: it asks for no
password.
"""

import os
from pathlib import Path

from rlhf.cli.arguments import Arguments, check_port, run_verb
from rlhf.config.checks import check_devices
from rlhf.config.errors import ConfigError
from rlhf.config.points import compose_config
from rlhf.config.schema import Config
from rlhf.config.terminal import Terminal
from rlhf.experiment.fingerprint import content_id
from rlhf.experiment.graph import model_path
from rlhf.experiment.policies import read_spec_values, with_saved_keys
from rlhf.experiment.stage_directory import StageDirectory


def main(arguments: list[str]) -> int:
    """Serve until interrupted; returns the exit code: 0, or 2 for bad input."""
    return run_verb(serve, arguments, str(__doc__), interrupted=0)


def serve(arguments: list[str], console: Terminal) -> None:
    """Load the model, then answer requests."""
    parser = Arguments("serve-reward")
    parser.add_argument("model")
    parser.add_argument("overrides", nargs="*")
    parser.add_address(8900)
    parser.add_argument("--batch-size", type=int, default=16)
    given = parser.parse_intermixed_args(arguments)
    check_port(given.port)
    if given.batch_size < 1:
        raise ConfigError(
            "argument", f"--batch-size {given.batch_size}", "a batch holds at least 1 sequence", "give another"
        )
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
    specs = (read_spec_values(StageDirectory(directory)) for directory in (path, path.parent))
    return with_saved_keys(config, next(filter(None, specs), {}), "data")

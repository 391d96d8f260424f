"""The entry: compose with Hydra, check everything, then run the stages that are not done yet.

Nothing here imports torch or deepspeed, unless a model that the user names is looked at. Hydra's jobs only hand their
configuration in, so that all points of a sweep are composed and checked before the first one starts.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from rlhf.config.checks import check_devices
from rlhf.config.compose import config_root, from_hydra, quoted, register, typed
from rlhf.config.errors import ConfigError
from rlhf.config.schema import Config
from rlhf.experiment.graph import Node, nodes
from rlhf.experiment.summary import link_run, print_summary
from rlhf.launch import StageFailed, launch
from rlhf.prepare import check_sources, prepared


@dataclass(frozen=True)
class Point:
    """One composed configuration and the directory that Hydra gave it."""

    config: Config
    run_directory: Path


def main() -> int:
    """Run what the command line asks for; returns the exit code."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        points = compose()
        plans = [(point, plan(point.config)) for point in points]
        for point, planned in plans:
            run(point, planned)
    except ConfigError as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}")
        return 2
    except StageFailed as error:
        console.print(f"[bold red]failed:[/] {escape(str(error))}")
        return 1
    except KeyboardInterrupt:
        console.print("[bold red]interrupted[/]")
        return 130
    return 0


def escape(text: str) -> str:
    """Text in which rich sees no markup."""
    return text.replace("[", r"\[")


def compose() -> list[Point]:
    """All points that the command line describes, checked; none for --help, --cfg and the like."""
    register()
    sys.argv[1:] = quoted(sys.argv[1:])
    composed: list[tuple[DictConfig, Path]] = []

    @hydra.main(version_base="1.3", config_path=str(config_root() / "conf"), config_name="config")
    def hand_in(config: DictConfig) -> None:
        composed.append((config, Path(HydraConfig.get().runtime.output_dir)))

    wanted_traceback = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises what is wrong instead of printing several lines of it
    try:
        hand_in()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if wanted_traceback == "1":
            raise
        raise from_hydra(error, sys.argv[1:]) from error
    except OSError as error:
        raise ConfigError(
            "output_root",
            error.filename,
            f"it cannot be written ({error.strerror})",
            "choose another directory: output_root=...",
        ) from error
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if wanted_traceback is not None:
            os.environ["HYDRA_FULL_ERROR"] = wanted_traceback
    return [Point(prepared(typed(config)), directory) for config, directory in composed]


def plan(config: Config) -> list[Node]:
    """The stages of one point; devices are asked for only if something is left to do."""
    planned = nodes(config)
    if not all(node.directory.done for node in planned):
        check_devices(config)
        check_sources(config, planned)
    return planned


def run(point: Point, planned: list[Node]) -> None:
    """Run a point's stages in order, reuse those that are done, and show what came out."""
    console = Console()
    reused: dict[str, bool] = {}
    for node in planned:
        reused[node.stage] = node.directory.done
        if node.directory.done:
            console.print(f"[green]✓[/] {node.stage}: done before, {node.directory.path}")
        else:
            launch(node, point.config, console)
    link_run(point.run_directory, planned, reused)
    print_summary(planned, console)

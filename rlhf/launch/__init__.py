"""Where stages run: in this process, or in one worker per device of this machine."""

from rich.console import Console

from rlhf.config.derive import ranks
from rlhf.config.schema import Config
from rlhf.experiment.graph import Node
from rlhf.experiment.spec import freeze
from rlhf.experiment.store import locked


class StageFailed(Exception):
    """A stage ended without a result; the message says which, why, and where its log is."""


def launch(node: Node, config: Config, console: Console) -> None:
    """Run a stage, or wait for the process that is running it. Raises StageFailed."""
    with locked(node.directory, config.launcher.lock_timeout_s, waiting=console.print):
        if node.directory.done:
            console.print(f"[green]✓[/] {node.stage}: done by another process, {node.directory.path}")
            return
        spec = freeze(node, config)
        console.print(f"[bold]{node.stage}[/]: {node.directory.path}")
        try:
            if config.launcher.kind == "local" or (config.launcher.kind == "auto" and ranks(config) > 1):
                from rlhf.launch.local import run_workers

                run_workers(spec, config, console)
            else:
                from rlhf.launch.worker import run_inline

                run_inline(spec)
        except BaseException as error:
            reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
            node.directory.set_status(state="failed", reason=reason)
            if isinstance(error, Exception) and not isinstance(error, StageFailed):
                raise StageFailed(f"{node.stage}: {reason} (in {node.directory.path})") from error
            raise
        if not node.directory.done:
            raise StageFailed(f"{node.stage}: no result was written (in {node.directory.path})")

"""Saving a stage so that it resumes exactly, and resuming it."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from rlhf.config.derive import shard_layout
from rlhf.config.disk import disk_problem
from rlhf.engine.save import write_tensors
from rlhf.engine.state import engine_state, generators, restore_engine, restore_generators
from rlhf.experiment import stopping
from rlhf.experiment.checkpoints import (
    Manifest,
    checkpoint_dirs,
    checkpoint_name,
    integrity_error,
    partial_dir,
    publish,
    read_manifest,
    remove_all,
    remove_partial,
)
from rlhf.experiment.integrity import file_digest
from rlhf.experiment.stopping import Pruned, Stopped
from rlhf.experiment.tensor_files import open_tensors
from rlhf.runtime.distributed import barrier, gather, is_main, rank, total, world
from rlhf.stages.context import Context

Tensors = dict[str, Tensor]


@dataclass
class Progress:
    """Where a stage stands: `step` steps are done. `numbers` and `tensors` are the stage's own, beside its engines."""

    step: int = 0
    numbers: dict[str, Any] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)


class Saver:
    """Saves a stage's engines, generators and own state at intervals (`checkpoint.every_…`) and when it is asked to stop.

    All ranks must call its methods together.
    """

    def __init__(self, context: Context, engines: dict[str, Any]) -> None:
        self.context, self.engines = context, engines
        self.settings = context.spec.config.checkpoint
        self.directory = context.directory.path
        self.saved_at = time.monotonic()
        self.newest: str | None = None  # the checkpoint that holds the present state, if it is not older

    def resume(self) -> Progress:
        """Put everything back as the newest sound checkpoint has it; where there is none, begin."""
        self.context.directory.check_lock()
        candidates: list[Path] = gather(checkpoint_dirs(self.directory))[0]
        if is_main():
            remove_partial(self.directory)
        for checkpoint in candidates:
            problem, manifest = self.verify(checkpoint)
            if problem is None and manifest is not None:
                progress, self.newest = self.load(checkpoint, manifest), checkpoint.name
                self.context.tracker.resume(checkpoint, manifest.step, progress.numbers["seconds"])
                self.say(f"resumed {self.context.spec.stage} at {checkpoint.name}")
                if progress.numbers["code"] != self.context.spec.code:
                    self.say("the package has changed since: what follows may differ from the unbroken run")
                return progress
            self.say(f"{checkpoint} is damaged ({problem}); looking for the one before it")
            barrier()
            if is_main():
                shutil.rmtree(checkpoint, ignore_errors=True)
        if is_main():
            remove_all(self.directory)
        self.context.tracker.resume(None, 0, 0.0)
        barrier()
        return Progress()

    def verify(self, checkpoint: Path) -> tuple[str | None, Manifest | None]:
        """Return what is wrong with a checkpoint (None: nothing), each rank looking at some of its files; and its
        manifest."""
        try:
            manifest = read_manifest(checkpoint)
            problem = integrity_error(checkpoint, sorted(manifest.files)[rank() :: world()], manifest)
        except (OSError, ValueError) as error:
            manifest, problem = None, str(error)
        return next((found for found in gather(problem) if found), None), manifest

    def load(self, checkpoint: Path, manifest: Manifest) -> Progress:
        """Read a sound checkpoint: what this rank kept, else what rank 0 kept for all. Nothing of it stays mapped: its room
        on the disk is free when it is removed."""
        own, common = (open_tensors(checkpoint / f"rank-{number}.safetensors") for number in (rank(), 0))
        own_names, common_names = set(own.keys()), set(common.keys())

        def find(name: str) -> Tensor | None:
            if name in own_names:
                return own.get_tensor(name)  # type: ignore[no-any-return]
            return common.get_tensor(name) if name in common_names else None

        for key, engine in self.engines.items():
            restore_engine(engine, lambda name, key=key: find(f"{key}/{name}"))  # type: ignore[misc]
        restore_generators(lambda name: own.get_tensor(name) if name in own_names else None)
        names = sorted(name for name in own_names if name.startswith("stage/"))
        tensors = {name.removeprefix("stage/"): own.get_tensor(name).clone() for name in names}  # not the file
        return Progress(manifest.step, manifest.numbers, tensors)

    def boundary(
        self, step: int, phase: str | None, numbers: Callable[[], dict[str, Any]], tensors: Callable[[], Tensors] = dict
    ) -> None:
        """Save if it is time to, after `step` steps (and a phase of the next one). Raises Stopped if the stage was asked to
        stop on any rank, or by an alarm (`health.stop`); Pruned if the search that launched it has given it up."""
        every, minutes = self.settings.every_steps, self.settings.every_minutes
        due = is_main() and (
            (phase is None and every is not None and step % every == 0)
            or (minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes)
        )
        pruning = (
            is_main() and self.context.spec.config.sweep.pruner != "none" and self.context.directory.prune_file.is_file()
        )
        alarm = self.context.tracker.stop_reason
        stop, prune, save = total(stopping.stop_requested.is_set() or alarm is not None, pruning, due)
        if not stop and not prune and not save:
            return
        name = checkpoint_name(step, phase)
        problem = None if name == self.newest else self.save(name, step, numbers(), tensors())
        if stop or prune:
            told = f"saved as {name}" if problem is None else problem
            told += f"; {alarm} (health.stop)" if stop and alarm is not None else ""
            raise (Stopped if stop else Pruned)(told)

    def save(self, name: str, step: int, numbers: dict[str, Any], tensors: Tensors) -> str | None:
        """Write a checkpoint; returns what went wrong, if anything did. Then the one before is kept. Raises LockLost."""
        self.context.directory.check_lock()
        checkpoint = partial_dir(self.directory, name)
        if is_main():
            shutil.rmtree(checkpoint, ignore_errors=True)
        barrier()
        state = {f"{key}/{part}": t for key, engine in self.engines.items() for part, t in engine_state(engine).items()}
        state |= generators() | {f"stage/{key}": tensor for key, tensor in tensors.items()}
        found = gather(self.attempt(self.write, checkpoint / f"rank-{rank()}.safetensors", state))
        problem = next((problem for _, problem in found if problem), None)
        if problem is None:
            files = {f"rank-{number}.safetensors": written for number, (written, _) in enumerate(found)}
            problem = gather(self.attempt(self.commit, name, step, numbers, files) if is_main() else (None, None))[0][1]
        self.saved_at = time.monotonic()
        if problem is None:
            self.newest = name
            return None
        self.context.directory.check_lock()
        if is_main():
            shutil.rmtree(checkpoint, ignore_errors=True)
        told = f"{name} could not be saved: {problem}; the checkpoint before it is kept"
        self.say(told)
        if self.settings.on_error == "stop":
            raise RuntimeError(f"{told} (checkpoint.on_error=stop)")
        return told

    def write(self, file: Path, state: Tensors) -> list[Any]:
        """Write this rank's file; returns its size and checksum."""
        file.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(file, [(name, tensor.dtype, tensor.shape, read_tensors(tensor)) for name, tensor in state.items()])
        return file_digest(file)

    def commit(self, name: str, step: int, numbers: dict[str, Any], files: dict[str, list[Any]]) -> None:
        """Write the manifest, which makes the checkpoint whole, and publish it."""
        self.context.directory.check_lock()
        tracker, spec = self.context.tracker, self.context.spec
        logs = tracker.save(partial_dir(self.directory, name))
        files = files | {file.name: file_digest(file) for file in logs}
        numbers = {**numbers, "seconds": tracker.seconds, "code": spec.code}
        publish(
            self.directory, name, Manifest(step, shard_layout(spec.config, spec.stage), numbers, files), self.settings.keep
        )

    def attempt(self, action: Callable[..., Any], *arguments: Any) -> tuple[Any, str | None]:
        """Run an action; returns its value, or the disk's error in words: other ranks must hear of it before this one gives
        up."""
        try:
            return action(*arguments), None
        except OSError as error:
            return None, disk_problem(error, self.directory)

    def say(self, text: str) -> None:
        """Tell the user, once."""
        if is_main():
            print(text, flush=True)


def read_tensors(tensor: Tensor) -> Callable[[], Tensor]:
    """Return a function that reads a tensor's value onto the host."""
    return lambda: tensor.detach().cpu()

"""TensorBoard: event files in the stage's directory, of metrics, of samples as text, and of the stage's keys with its final
metrics, which the tab HPARAMS compares. Imported only when used."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.config.secrets import mask_values
from rlhf.experiment.fingerprint import read_values
from rlhf.experiment.spec import Spec, stage_directory


class TensorboardRun:
    """One stage's event files, begun anew: the tracker replays what was logged before."""

    def __init__(self, spec: Spec) -> None:
        from torch.utils.tensorboard import SummaryWriter

        directory: Path = stage_directory(spec).path / "tensorboard"
        for file in directory.glob("events.out.tfevents.*"):
            file.unlink()
        # A TensorBoard that has read the removed files drops what they said from step 0 on.
        self.writer: Any = SummaryWriter(str(directory), purge_step=0)
        self.write_keys(spec)

    def write_keys(self, spec: Spec) -> None:
        """Write the keys that the stage reads. Of the other summaries of that tab TensorBoard would show the keys
        of the first stage alone, for stages of all kinds."""
        from tensorboard.plugins.hparams import summary_v2

        values = {key: simplify(mask_values(value, key)) for key, value in read_values(spec.config, spec.stage).items()}
        keys = {"stage": spec.stage, **({"sweep": spec.swept} if spec.swept else {}), **values}
        self.writer.file_writer.add_summary(summary_v2.hparams_pb(keys, trial_id=spec.fingerprint))

    def log(self, step: int, at: float, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step that was logged at the Unix time `at`."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step, walltime=at)

    def text(self, step: int, at: float, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the samples of a step as text."""
        self.writer.add_text("samples", "\n\n---\n\n".join(map(write_sample, rows)), step, walltime=at)

    def finish(self, metrics: Mapping[str, float] | None = None) -> None:
        """Write the final metrics of a stage that is done, as `final/` and their names; flush and close the files."""
        for name, value in (metrics or {}).items():
            self.writer.add_scalar(f"final/{name}", value)
        self.writer.close()


def simplify(value: Any) -> str | bool | float:
    """Return a key's value as TensorBoard takes it: text, a truth value or a number."""
    return value if isinstance(value, str | bool | int | float) else json.dumps(value, default=vars)


def write_sample(row: Mapping[str, Any]) -> str:
    """Return a sample in Markdown: its texts as they are, and its numbers in a line."""
    texts = [f"**{name}**\n\n{indent(value)}" for name, value in row.items() if isinstance(value, str)]
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float) and name != "step"}
    return "\n\n".join(filter(None, [*texts, ", ".join(f"{name} {value:.3g}" for name, value in numbers.items())]))


def indent(text: str) -> str:
    """Return a text as a block of code, in which nothing is Markdown."""
    return "\n".join(f"    {line}" for line in text.split("\n"))

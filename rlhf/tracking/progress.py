"""A live bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rlhf.catalog.metric import Metric
from rlhf.config.terminal import Terminal

QUIET_PERIOD_S = 5.0


def rate(per_second: float) -> str:
    """Return a speed for people: two significant digits at least, so that a slow model does not stand still."""
    return f"{per_second:.0f}" if per_second >= 10 else f"{per_second:#.2g}"


def describe_progress(metrics: dict[str, float], names: Sequence[str], known: Mapping[str, Metric]) -> dict[str, str]:
    """Write the named metrics of a step that it has, by their headings, as a bar shows them; `known` are the stage's."""
    shown = [known[name] for name in names if name in metrics]
    return {m.heading: (rate if m.unit == "1/s" else m.write)(metrics[m.name]) for m in shown}


class Bar:
    """Progress of a stage, `done` steps of which were done before, with its latest figures; silent unless `show`."""

    def __init__(self, label: str, total: int, show: bool, done: int = 0) -> None:
        self.label, self.total, self.show, self.done = label, total, show, done
        self.console = Terminal()
        self.last = 0.0
        self.progress: Progress | None = None
        if show and self.console.is_terminal:
            self.progress = Progress(
                TextColumn("{task.description:>6}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[figures]}"),
                console=self.console,
            )
            self.task = self.progress.add_task(label, total=total, completed=done, figures="")

    def __enter__(self) -> "Bar":
        if self.progress is not None:
            self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.progress is not None:
            self.progress.stop()

    def update(self, done: int, figures: dict[str, str]) -> None:
        """Show that `done` steps are done, and their figures."""
        self.done = done
        text = "  ".join(f"{name} {value}" for name, value in figures.items())
        if self.progress is not None:
            self.progress.update(self.task, completed=done, figures=text)
        elif self.show and (done == self.total or time.monotonic() - self.last > QUIET_PERIOD_S):
            self.last = time.monotonic()
            self.console.print(f"{self.label:>6} {done}/{self.total}  {text}", soft_wrap=True)

    def say(self, text: str) -> None:
        """Show what is being done between two steps, where the number of steps stands still."""
        if self.progress is not None:
            self.progress.update(self.task, figures=text)
        elif self.show and time.monotonic() - self.last > QUIET_PERIOD_S:
            self.last = time.monotonic()
            self.console.print(f"{self.label:>6} {self.done}/{self.total}  {text}", soft_wrap=True)

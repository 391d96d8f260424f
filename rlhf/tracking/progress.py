"""A live bar on a terminal, a line now and then elsewhere."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from rlhf.catalog.metric import Metric
from rlhf.config.terminal import Terminal, format_duration
from rlhf.planner.remaining import Planned, average_pace, seconds_left

QUIET_PERIOD_S = 5.0
# Steps whose pace tells how long the others will take.
PACES = 20


def format_rate(per_second: float) -> str:
    """Write a speed with two significant digits at least, so that a slow model does not stand still."""
    return f"{per_second:.0f}" if per_second >= 10 else f"{per_second:#.2g}"


def describe_progress(metrics: dict[str, float], names: Sequence[str], known: Mapping[str, Metric]) -> dict[str, str]:
    """Write the named metrics of a step that it has, by their headings, as a bar shows them; `known` are the stage's."""
    shown = [known[name] for name in names if name in metrics]
    return {m.heading: (format_rate if m.unit == "1/s" else m.write)(metrics[m.name]) for m in shown}


class TimeLeft(ProgressColumn):
    """The time to a task's end, which its field `ends` says by the monotonic clock."""

    def render(self, task: Task) -> Text:
        """Return the column of a task; empty while its end is not known."""
        ends = task.fields["ends"]
        left = "" if ends is None else f"{format_duration(max(0.0, ends - time.monotonic()))} left"
        return Text(left, "progress.remaining")


class Bar:
    """The progress of a stage, with its latest metrics; silent unless `show`. `done` steps were done before.

    The time that is left is that of the plan, corrected by the pace of the last steps.
    """

    def __init__(self, label: str, total: int, show: bool, done: int = 0, planned: Planned | None = None) -> None:
        self.label, self.total, self.show, self.done, self.planned = label, total, show, done, planned
        self.console = Terminal()
        self.last = 0.0
        self.paces: deque[float] = deque(maxlen=PACES)
        self.stepped: float | None = None  # when the last step ended, if nothing but steps was done since
        self.progress: Progress | None = None
        if show and self.console.is_terminal:
            self.progress = Progress(
                TextColumn("{task.description:>6}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeLeft(),
                TextColumn("{task.fields[metrics]}"),
                console=self.console,
            )
            self.task = self.progress.add_task(label, total=total, completed=done, metrics="", ends=self.find_end())

    def __enter__(self) -> "Bar":
        if self.progress is not None:
            self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.progress is not None:
            self.progress.stop()

    def find_end(self) -> float | None:
        """Return when the stage ends, by the monotonic clock; None while that cannot be told."""
        left = seconds_left(self.planned, self.done, self.total, average_pace(self.paces))
        return None if left is None else time.monotonic() + left

    def update(self, done: int, metrics: dict[str, str]) -> None:
        """Show that `done` steps are done, and the metrics of the last one as they are written, by name."""
        now = time.monotonic()
        if self.stepped is not None and done > self.done:
            self.paces.append((now - self.stepped) / (done - self.done))
        self.done, self.stepped = done, now
        text = "  ".join(f"{name} {value}" for name, value in metrics.items())
        ends = self.find_end()
        if self.progress is not None:
            self.progress.update(self.task, completed=done, metrics=text, ends=ends)
        elif self.show and (done == self.total or now - self.last > QUIET_PERIOD_S):
            self.last = now
            left = "" if ends is None or done == self.total else f"{format_duration(ends - now)} left  "
            self.console.print(f"{self.label:>6} {done}/{self.total}  {left}{text}", soft_wrap=True)

    def say(self, text: str) -> None:
        """Show the work between two steps, during which the number of steps stands still."""
        self.stepped = None
        if self.progress is not None:
            self.progress.update(self.task, metrics=text)
        elif self.show and time.monotonic() - self.last > QUIET_PERIOD_S:
            self.last = time.monotonic()
            self.console.print(f"{self.label:>6} {self.done}/{self.total}  {text}", soft_wrap=True)

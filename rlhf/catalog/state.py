"""The states of a stage, what needs a look first. A point is in the first state that any of its stages is in."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class State:
    """One state of a stage.

    Attributes:
        name: the word for it in status.json, summary.json, tables and reports.
        meaning: what has happened.
        style: how a terminal shows it, as rich's style.
        tone: how a report's page shows it: good, bad, wait or plain.
        written: whether status.json may say it; other states are found out by looking.
        alive: whether a process or a job works on the stage or will.
        ended: whether it ended without a result, as summary.json may say too.
        settled: whether it stays as it is until a command is typed.
        bad: whether someone has to look into it.
    """

    name: str
    meaning: str
    style: str
    tone: str = "plain"
    written: bool = False
    alive: bool = False
    ended: bool = False
    settled: bool = False
    bad: bool = False


STATES: dict[str, State] = {
    state.name: state
    for state in (
        State("failed", "it ended with an error", "bold red", "bad", written=True, ended=True, settled=True, bad=True),
        State("damaged", "its files cannot be read or contradict each other", "bold red", "bad", bad=True),
        State("lost", "SLURM has no job for it any more", "red", "bad", bad=True),
        State("skipped", "a stage that it needs has no result", "red", "wait", ended=True, settled=True, bad=True),
        State("silent", "it runs and has no heartbeat: its process is dead or hangs", "yellow", "bad", bad=True),
        State("running", "a process works on it", "bold cyan", "wait", written=True, alive=True),
        State("starting", "its process loads models and data", "cyan", "wait", written=True, alive=True),
        State("stopped", "it was asked to stop and can be resumed", "yellow", "wait", written=True, ended=True, bad=True),
        State("pruned", "a search gave it up early; it can be resumed", "magenta", written=True, ended=True, settled=True),
        State("queued", "its job waits", "blue", "wait", written=True, alive=True),
        State("planned", "nothing has been done for it yet", "dim"),
        State("done", "it has a result", "green", "good", written=True, settled=True),
    )
}
WRITTEN, ALIVE, ENDED, SETTLED, BAD = (
    tuple(name for name, state in STATES.items() if getattr(state, trait))
    for trait in ("written", "alive", "ended", "settled", "bad")
)


def most_urgent(states: Iterable[str], default: str = "planned") -> str:
    """Return the state that needs a look first; words that are no state come last."""
    order = list(STATES)
    return min(states, key=lambda state: order.index(state) if state in STATES else len(order), default=default)

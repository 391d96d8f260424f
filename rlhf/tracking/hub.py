"""Pushing saved models, each with its card, to the Hugging Face hub: after a run (`hub.push`), or by the verb `push`."""

import re
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Formatter
from threading import Thread
from typing import Any

from rlhf.catalog.stage import kind_of
from rlhf.config.errors import ConfigError, first_line
from rlhf.config.hub import is_offline
from rlhf.config.schema import Publish
from rlhf.config.secrets import mask
from rlhf.experiment.files import as_mapping, as_text
from rlhf.experiment.graph import Node
from rlhf.experiment.sweep import Point, Task

KEY = "hub.push"
# Seconds that the hub has to say whose a token is.
ACCESS_S = 10.0
# The line of a card's example that says where the model is; of a pushed model it says the repository.
PATH_LINE = 'path = "."  # the directory of this card'
# What the id of a repository may hold in braces.
PLACEHOLDERS = ("stage", "point", "fingerprint", "name")
EXAMPLE = "as me/demo or me/demo-{stage}-{point}"


@dataclass(frozen=True)
class Push:
    """A stage whose model is to be pushed, and the id of its repository."""

    task: Task
    repo: str

    def describe(self) -> str:
        """Return a line that says what is pushed, and to where."""
        settings, whose = self.task.config.hub, f", {self.task.label}" if self.task.label else ""
        where = f" at {settings.revision}" if settings.revision else ""
        seen = "private" if settings.private else "public"
        return f"hub.push: {self.task.node.name}{whose} to {self.repo}{where} ({seen} if it is new)"


def plan_pushes(points: Sequence[Point], tasks: Sequence[Task]) -> list[Push]:
    """Return what `hub.push` asks for: the models of all stages where it holds {stage}, else that of each point's last
    stage that saves one. Raises ConfigError for what is no id of a repository, and where two models would share one."""
    pattern = points[0].config.hub.push
    if pattern is None:
        return []
    check_pattern(pattern)
    last = {savers[-1].fingerprint for point in points if (savers := [node for node in point.stages if saves_model(node)])}
    chosen = [task for task in tasks if saves_model(task.node) and ("{stage}" in pattern or task.key in last)]
    pushes = [Push(task, name_repo(pattern, task)) for task in chosen]
    for push in pushes:
        check_repo(KEY, push.repo)
        other = next(other for other in pushes if other.repo == push.repo)
        if other is not push:
            both = f"{other.task.node.directory.path.name} and {push.task.node.directory.path.name}"
            fix = "put {stage}, {point} or {fingerprint} into it, " + EXAMPLE
            raise ConfigError(KEY, pattern, f"{both} would both be pushed to {push.repo}", fix)
    return pushes


def saves_model(node: Node) -> bool:
    """Whether a stage saves a model that can be used by itself."""
    kind = kind_of(node.stage)
    return bool(kind.cards) and not kind.is_benchmark


def check_pattern(pattern: str) -> None:
    """Raise ConfigError where braces hold anything but a placeholder."""
    try:
        names = [name for _, name, _, _ in Formatter().parse(pattern) if name is not None]
    except ValueError as error:
        raise ConfigError(KEY, pattern, f"its braces do not match ({error})", f"give it {EXAMPLE}") from error
    if unknown := [name for name in names if name not in PLACEHOLDERS]:
        known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        raise ConfigError(KEY, pattern, f"{{{unknown[0]}}} stands for nothing", f"there are {known}")


def name_repo(pattern: str, task: Task) -> str:
    """Return the id of a stage's repository. {point} is what sets the points apart that use the stage, or the first digits
    of its fingerprint where nothing does."""
    node, config = task.node, task.config
    values = {
        "stage": node.name,
        "point": task.swept or node.fingerprint[:8],
        "fingerprint": node.fingerprint[:12],
        "name": config.name,
    }
    return pattern.format(**{name: re.sub(r"[^A-Za-z0-9_.]+|[.]{2,}", "-", value) for name, value in values.items()})


def check_repo(key: str, repo: str) -> None:
    """Raise ConfigError for what is no id of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
        problem = None if repo.count("/") == 1 else "it does not say whose it is"
    except HFValidationError as error:
        problem = f"it is no id of a repository ({first_line(error)})"
    if problem is not None:
        raise ConfigError(key, repo, problem, f"give user or organisation and name, {EXAMPLE}")


def check_access(key: str, repo: str) -> None:
    """Raise ConfigError where nothing can be pushed from here: offline, without a token, or with one that the hub refuses
    or that may only read. The token is the hub's own matter: it is read from the environment or from its login, and
    written nowhere."""
    from huggingface_hub import constants, get_token

    later = "push later: python -m rlhf push DIR REPO"
    if is_offline():
        raise ConfigError(key, repo, "HF_HUB_OFFLINE is set", f"unset it, or {later}")
    token, fix = get_token(), "set HF_TOKEN to a token that may write, or log in: `hf auth login`"
    if not token:
        raise ConfigError(key, repo, "there is no token of the Hugging Face hub", fix)
    try:
        role = ask_role(token, constants.ENDPOINT)
    except ConnectionError as error:
        raise ConfigError(key, repo, str(error), f"try again, or leave it out and {later}") from error
    except PermissionError as error:
        raise ConfigError(key, repo, f"the hub refuses the token ({error})", fix) from error
    if role == "read":
        raise ConfigError(key, repo, "the token of the Hugging Face hub may only read", fix)


@cache
def ask_role(token: str, endpoint: str) -> str | None:
    """Ask the hub at an address, once, what a token may do: `read`, `write` or `fineGrained`; None where it does not say,
    as when too many have asked. Raises PermissionError where it refuses the token, and ConnectionError where it gives no
    answer in time."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    found: Future[Any] = Future()

    def ask() -> None:
        try:
            found.set_result(HfApi(endpoint=endpoint).whoami(token))
        except Exception as error:  # the HTTP client's own errors are no public names
            found.set_exception(error)

    Thread(target=ask, daemon=True).start()  # the client has no time limit for this question
    try:
        return as_text(as_mapping(as_mapping(found.result(ACCESS_S).get("auth")).get("accessToken")).get("role"))
    except TimeoutError as error:
        raise ConnectionError(f"the hub has not answered in {ACCESS_S:g} s") from error
    except HfHubHTTPError as error:
        if error.response.status_code == 429:
            return None
        if error.response.status_code in (401, 403):
            raise PermissionError(mask(first_line(error))) from error
        raise ConnectionError(f"the hub gives no answer ({mask(first_line(error))})") from error
    except Exception as error:
        raise ConnectionError(f"the hub is out of reach ({mask(first_line(error))})") from error


def push_model(model: Path, repo: str, settings: Publish, message: str) -> str:
    """Push the directory of a model as one commit, with its card's example made to load it from there. The repository is
    made where there is none. Returns its address; whatever the hub's client raises goes through."""
    from huggingface_hub import HfApi

    api = HfApi()
    address = api.create_repo(repo, private=settings.private, exist_ok=True)
    if settings.revision is not None:
        api.create_branch(repo, branch=settings.revision, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        for file in model.rglob("*"):
            if file.is_file():
                link = Path(place) / file.relative_to(model)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file.absolute())
        card = Path(place) / "README.md"
        if card.is_symlink():
            text = card.read_text()
            card.unlink()
            card.write_text(text.replace(PATH_LINE, f'path = "{repo}"'))
        api.upload_folder(repo_id=repo, folder_path=place, revision=settings.revision, commit_message=message)
    return str(address)


def try_push(model: Path, repo: str, settings: Publish, message: str) -> tuple[str | None, str | None]:
    """Push a model; returns the address, or why it could not be and how it is pushed later."""
    try:
        return push_model(model, repo, settings, message), None
    except Exception as error:  # the HTTP client's own errors are no public names
        again = f"python -m rlhf push {model} {repo}" + ("" if settings.private else " --public")
        again += f" --revision {settings.revision}" if settings.revision else ""
        reason = mask(f"{type(error).__name__}: {first_line(error)}")
        return None, f"{repo} was not pushed ({reason}); the model is saved, push it by `{again}`"

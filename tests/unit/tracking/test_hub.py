"""Models are pushed with their cards to where `hub.push` says; what cannot be is refused before anything starts, and a push
that fails costs nothing but itself."""

import pytest
from huggingface_hub import constants
from support.hub import Pushed, receive_pushes

from rlhf.cli.publish import check_search, prepare_pushes, push_models
from rlhf.cli.push import main as push
from rlhf.config.errors import ConfigError
from rlhf.config.terminal import Terminal
from rlhf.experiment.graph import build_graph
from rlhf.experiment.stage_directory import Result
from rlhf.experiment.sweep import Outcome, Point, build_task_graph
from rlhf.tracking.hub import PATH_LINE, plan_pushes

TOKEN = "hf_" + "aB3dE6gH9jK2mN5pQ8sT"


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine, and a token for it."""
    pushed = Pushed()
    with receive_pushes(pushed) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield pushed


@pytest.fixture
def plan(make_config, tmp_path):
    """`plan(pattern, *points)`: the points of a sweep, each with its overrides, and their stages."""

    def make(pattern, *points):
        found = []
        for words in points or ((),):
            config = make_config(*words, f"output_root={tmp_path}")
            config.hub.push = pattern
            found.append(
                Point(config, list(words), tmp_path / (",".join(words) or "run"), bool(points), build_graph(config))
            )
        return found, build_task_graph(found)

    return make


def save(task):
    """Leave a stage done, with a model and its card."""
    directory = task.node.directory
    directory.model.mkdir(parents=True)
    (directory.model / "config.json").write_text("{}")
    (directory.model / "README.md").write_text(f"---\nlibrary_name: transformers\n---\n# A model\n\n{PATH_LINE}\n")
    directory.spec_file.write_text("{}")
    directory.set_status(state="done")
    directory.finish(Result(task.node.stage, task.key, 1.0, {}))
    return directory


SWEEP = (("ppo.kl_coef=0.1",), ("ppo.kl_coef=0.2",))


@pytest.mark.parametrize(
    ("pattern", "points", "repos"),
    [
        ("me/demo", (), ["me/demo"]),  # the last stage's
        ("me/{name}-{stage}", (), ["me/rlhf-sft", "me/rlhf-reward", "me/rlhf-ppo"]),
        ("me/demo-{point}", SWEEP, ["me/demo-kl_coef-0.1", "me/demo-kl_coef-0.2"]),
    ],
)
def test_what_is_pushed_where(plan, pattern, points, repos):
    assert [push.repo for push in plan_pushes(*plan(pattern, *points))] == repos


def test_a_shared_stage_is_pushed_once_by_its_fingerprint(plan):
    points, tasks = plan("me/{stage}-{point}", *SWEEP)
    assert [push.repo for push in plan_pushes(points, tasks)][:2] == [
        f"me/sft-{tasks[0].key[:8]}",
        f"me/reward-{tasks[1].key[:8]}",
    ]


def test_what_is_no_repository_is_refused(plan):
    points, tasks = plan(None, *SWEEP)
    for pattern, told in (
        ("demo", "does not say whose"),
        ("me/de mo", "no id of a repository"),
        ("me/{model}", r"\{model\} stands for nothing"),
        ("me/{stage", "braces do not match"),
        ("me/{stage}", "would both be pushed to me/ppo"),
    ):
        points[0].config.hub.push = pattern
        with pytest.raises(ConfigError, match=rf"hub\.push=.*{told}"):
            plan_pushes(points, tasks)
    points[0].config.hub.push = "me/demo"
    with pytest.raises(ConfigError, match=r"hub\.push=me/demo: .*\{point\}"):  # of a search points come one by one
        check_search(points[0].config)


def test_without_a_token_nothing_starts(plan, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(ConfigError, match=r"HF_TOKEN.*hf auth login"):
        prepare_pushes(*plan("me/demo"))
    points, tasks = plan("me/demo")
    points[0].config.dry_run = True
    assert prepare_pushes(points, tasks)  # which is told, and needs no token


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"refuse": 401}, r"refuses the token .*set HF_TOKEN to a token that may write"),
        ({"role": "read"}, r"may only read; set HF_TOKEN"),
        ({"refuse": 503}, r"gives no answer .*push later"),
        ({"slow_s": 0.5}, r"has not answered in 0.1 s; .*push later"),
    ],
)
def test_a_token_is_tried_before_anything_starts(plan, hub, monkeypatch, state, told):
    monkeypatch.setattr("rlhf.tracking.hub.ACCESS_S", 0.1 if "slow_s" in state else 5.0)
    vars(hub).update(state)
    with pytest.raises(ConfigError, match=rf"^hub\.push=me/demo: .*{told}") as raised:
        prepare_pushes(*plan("me/demo"))
    assert TOKEN not in str(raised.value)


def test_offline_is_refused_without_asking(plan, hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("rlhf.tracking.hub.ask_role", None)
    with pytest.raises(ConfigError, match=r"HF_HUB_OFFLINE is set; unset it"):
        prepare_pushes(*plan("me/demo"))


def test_a_model_is_pushed_with_its_card(plan, hub, capsys):
    points, tasks = plan("me/demo")
    points[0].config.hub.revision = "beta"
    tasks = build_task_graph(points)
    directory = save(tasks[-1])
    code = push_models(plan_pushes(points, tasks), {tasks[-1].key: Outcome("done")}, Terminal())
    assert code == 0 and "is at " in capsys.readouterr().out
    assert (hub.made[0]["name"], hub.made[0]["organization"], hub.branches) == ("demo", "me", ["beta"])
    assert hub.made[0].get("private") or hub.made[0].get("visibility") == "private"
    assert set(hub.files["me/demo"]) == {"config.json", "README.md"}
    assert 'path = "me/demo"' in hub.files["me/demo"]["README.md"].decode()
    assert PATH_LINE in (directory.model / "README.md").read_text()  # which is what the stage saved
    assert hub.tokens == {f"Bearer {TOKEN}"}


def test_a_push_that_fails_says_why_and_how_it_is_done_later(plan, hub, capsys):
    points, tasks = plan("me/demo")
    directory = save(tasks[-1])
    hub.refuse = 403
    assert push_models(plan_pushes(points, tasks), {tasks[-1].key: Outcome("reused")}, Terminal()) == 1
    said = capsys.readouterr().err
    assert "me/demo was not pushed" in said and f"python -m rlhf push {directory.model} me/demo" in said and "403" in said
    assert TOKEN not in said and directory.done
    hub.refuse = None
    assert push([str(directory.path), "me/demo", "--public"]) == 0
    assert set(hub.files) == {"me/demo"} and not hub.made[-1].get("private")


def test_a_stage_that_failed_is_not_pushed(plan, hub, capsys):
    points, tasks = plan("me/demo")
    assert push_models(plan_pushes(points, tasks), {tasks[-1].key: Outcome("failed")}, Terminal()) == 0
    assert "is failed, and not pushed" in capsys.readouterr().out and not hub.made


@pytest.mark.parametrize(
    ("words", "told"), [(("nowhere", "me/demo"), "no such directory"), ((".", "demo"), "holds no model")]
)
def test_the_verb_refuses_what_it_cannot_push(hub, tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    assert push(list(words)) == 2
    assert told in capsys.readouterr().err

"""Searches: what is searched, what each trial gets, when it ends, and that a broken one goes on as if it had not been."""

import math
import os
import sys
import time
from types import SimpleNamespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from rlhf.cli.search import repair_journal, search, split_sweep, suggest, wants_search
from rlhf.config.command import read_command
from rlhf.config.compose import config_root, register
from rlhf.config.errors import ConfigError
from rlhf.config.points import Composer
from rlhf.experiment.graph import Node
from rlhf.experiment.stage_directory import Result, StageDirectory

optuna = pytest.importorskip("optuna")

INTERVAL = "ppo.kl_coef=interval(0.01,0.5)"


# --- what is searched ------------------------------------------------------------------------------------------------


@pytest.fixture
def presets(tmp_path, monkeypatch):
    """A place for presets of sweeps, beside the real configuration."""
    root, place = config_root(), tmp_path / "root"
    place.mkdir()
    for name in ("conf", "experiments"):
        (place / name).symlink_to(root / name)
    (place / "sweeps").mkdir()
    monkeypatch.setattr("rlhf.config.compose.config_root", lambda: place)
    monkeypatch.setattr("rlhf.config.command.config_root", lambda: place)
    register()
    yield place / "sweeps"
    monkeypatch.undo()
    register()


def preset(place, name, **params):
    lines = [f"      {key.replace('__', '.')}: {value}" for key, value in params.items()]
    head = ["# @package _global_", f"name: {name}", "hydra:", "  sweeper:", "    params:"]
    (place / f"{name}.yaml").write_text("\n".join([*head, *lines]) + "\n")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["-m", INTERVAL], True),
        (["--multirun", "seed=1,2", "ppo.learning_rate=tag(log,interval(1e-5,1e-3))"], True),
        (["-m", "seed=1,2"], False),
        (["-m", "+sweeps=kl"], False),
        (["-m", "+sweeps=mine"], True),
        (["-m", "+sweeps=mine", "ppo.kl_coef=0.1"], False),  # what is typed replaces the preset's
        ([], False),
    ],
)
def test_an_interval_in_a_sweep_is_a_search(presets, arguments, wanted):
    preset(presets, "mine", ppo__kl_coef="interval(0.01,0.5)")
    preset(presets, "kl", ppo__kl_coef="0.1,0.2")
    with Composer(read_command(arguments)) as composer:
        assert wants_search(composer) == wanted


def split_of(*arguments):
    with Composer(read_command(["-m", *arguments])) as composer:
        return split_sweep(composer)


def keys(space):
    return {override.key_or_group: override.input_line.split("=", 1)[1] for override in space}


def test_what_is_searched_is_told_from_what_is_given():
    fixed, space = split_of("seed=3", INTERVAL, "model=opt-tiny,gpt2-tiny", "+ppo.x=1", "sft.betas=[0.9,0.95]")
    assert fixed == ["seed=3", "+ppo.x=1", "sft.betas=[0.9,0.95]"]
    assert keys(space) == {"ppo.kl_coef": "interval(0.01,0.5)", "model": "opt-tiny,gpt2-tiny"}


def test_a_presets_keys_are_searched_too_unless_they_are_given(presets):
    preset(presets, "mine", ppo__kl_coef="interval(0.01,0.5)", seed="1,2")
    assert keys(split_of("+sweeps=mine")[1]) == {"ppo.kl_coef": "interval(0.01,0.5)", "seed": "1,2"}
    fixed, space = split_of("+sweeps=mine", "seed=7")
    assert sorted(fixed) == ["+sweeps=mine", "seed=7"] and keys(space) == {"ppo.kl_coef": "interval(0.01,0.5)"}


@pytest.mark.parametrize("arguments", [["ppo.kl_cof=1", INTERVAL], ["+sweeps=nope", INTERVAL], ["seed=[1", INTERVAL]])
def test_what_hydra_refuses_is_one_line(arguments):
    with pytest.raises(ConfigError) as refused:
        split_of(*arguments)
    assert "\n" not in str(refused.value)


def values(text, count=60):
    """What so many random trials get for an override."""
    (override,) = OverridesParser.create().parse_overrides([text])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [suggest(study.ask(), override) for _ in range(count)]


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_an_interval_gives_numbers_within_it():
    found = [float(value) for value in values("ppo.kl_coef=interval(0.01,0.5)")]
    assert min(found) >= 0.01 and max(found) <= 0.5 and len(set(found)) == len(found)
    assert sum(value < 0.255 for value in found) == pytest.approx(30, abs=12)


def test_an_interval_with_log_gives_each_order_of_magnitude_its_share():
    found = [math.log10(float(value)) for value in values("sft.learning_rate=tag(log,interval(1e-6,1e-2))")]
    assert min(found) >= -6 and max(found) <= -2
    assert sum(value < -4 for value in found) == pytest.approx(30, abs=12)


def test_an_interval_of_whole_numbers_gives_whole_numbers():
    assert set(values("model.num_hidden_layers=int(interval(1,4))")) == {1, 2, 3, 4}


@pytest.mark.parametrize("text", ["model=opt-tiny,gpt2-tiny", "model=choice(opt-tiny,gpt2-tiny)"])
def test_a_list_gives_one_of_its_values(text):
    assert set(values(text)) == {"opt-tiny", "gpt2-tiny"}


# --- the search itself -----------------------------------------------------------------------------------------------


class Runs:
    """Stands in for running a point: `value(overrides)` is its figure, a number that fails it, or an exception."""

    def __init__(self, root, value):
        self.root, self.value, self.points, self.configs = root, value, [], []

    def __call__(self, job, during):
        found = dict(override.split("=", 1) for override in job.overrides)
        self.points.append({key: found[key] for key in found if key not in ("output_root", "sweep.trials")})
        self.configs.append(job.config)
        self.directory = job.directory
        value = self.value(len(self.points), job.config)
        if isinstance(value, BaseException):
            raise value
        node = Node("sft", "f", StageDirectory(self.root / "stages" / f"sft-{len(self.points)}"))
        if value is None:
            return 1, SimpleNamespace(stages=[node])
        if value == "stopped":
            return 130, SimpleNamespace(stages=[node])
        node.directory.finish(Result("sft", "f", 1.0, value if isinstance(value, dict) else {"eval/gold": value}))
        return 0, SimpleNamespace(stages=[node])


def searched(monkeypatch, asked, runs):
    """Search as `python -m rlhf <asked>` does, with something in the place of runs."""
    monkeypatch.setattr(sys, "argv", ["rlhf", *asked])
    with Composer(read_command(asked)) as composer:
        return search(composer, runs)


@pytest.fixture
def study(tmp_path, capsys, monkeypatch):
    """`study(value, *arguments, place="x")`: the exit code, the points that were run, and what was printed."""

    def call(value, *arguments, place="x", trials=4):
        runs = Runs(tmp_path / place / "runs", value)
        asked = ["-m", INTERVAL, "name=rlhf", *arguments, f"output_root={tmp_path / place}", f"sweep.trials={trials}"]
        try:
            code = searched(monkeypatch, asked, runs)
        except RuntimeError:
            code = None
        return code, runs, capsys.readouterr()

    return call


def peak(number, config):
    """The best coefficient is 0.2."""
    return -abs(config.ppo.kl_coef - 0.2)


def test_a_search_has_as_many_trials_as_are_asked_for_and_names_the_best(study, tmp_path):
    code, runs, said = study(peak, "seed=5")
    assert code == 0 and len(runs.points) == 4
    assert len({point["ppo.kl_coef"] for point in runs.points}) == 4
    assert all(point["seed"] == "5" for point in runs.points) and {config.seed for config in runs.configs} == {5}
    best = min(runs.configs, key=lambda config: abs(config.ppo.kl_coef - 0.2)).ppo.kl_coef
    assert f"best of 4: eval/gold {peak(0, SimpleNamespace(ppo=SimpleNamespace(kl_coef=best))):.4g}" in said.out
    assert f"with ppo.kl_coef={best:.6g}" in said.out
    assert runs.directory == tmp_path / "x" / "sweeps" / "rlhf" / f"ppo.kl_coef={runs.points[-1]['ppo.kl_coef']}"
    assert (tmp_path / "x" / "sweeps" / "rlhf" / "study.journal").is_file()

    code, runs, said = study(peak, "seed=5")  # typed again
    assert (code, runs.points) == (0, []) and "best of 4" in said.out
    code, runs, said = study(peak, "seed=5", trials=6)  # and with more to do
    assert code == 0 and len(runs.points) == 2 and "trial 5 of 6" in said.out and "best of 6" in said.out


def test_a_search_that_breaks_off_goes_on_as_the_unbroken_one(study):
    """Past the trials that are drawn at random before the sampler learns (TPE's first ten)."""
    _, unbroken, _ = study(peak, "sweep.sampler=tpe", place="unbroken", trials=13)
    error = RuntimeError("power cut")
    code, first, _ = study(lambda number, config: error if number == 12 else peak(number, config), place="y", trials=13)
    assert code is None and len(first.points) == 12
    code, second, said = study(peak, place="y", trials=13)
    assert code == 0 and "best of 13" in said.out
    assert first.points[-1] == second.points[0]  # the one that was broken off is tried again
    found = [point["ppo.kl_coef"] for point in [*first.points[:-1], *second.points]]
    assert found == [point["ppo.kl_coef"] for point in unbroken.points]


def test_a_stopped_trial_ends_the_search_and_is_tried_again(study):
    code, first, _ = study(lambda number, config: "stopped" if number == 2 else peak(number, config))
    assert code == 130 and len(first.points) == 2
    code, second, _ = study(peak)
    assert code == 0 and len(second.points) == 3 and second.points[0] == first.points[1]


def test_a_point_that_fails_counts_and_the_others_go_on(study):
    code, runs, said = study(lambda number, config: None if number == 2 else peak(number, config))
    assert code == 1 and len(runs.points) == 4 and "best of 4" in said.out
    code, runs, _ = study(peak)
    assert (code, runs.points) == (0, [])  # it is not tried again
    code, runs, said = study(lambda number, config: None, place="z", trials=2)
    assert code == 1 and len(runs.points) == 2 and "no trial has a value" in said.out


def test_a_figure_that_is_no_number_is_a_failure(study):
    def value(number, config):
        return RuntimeError("without end") if number > 6 else math.nan if number == 2 else peak(number, config)

    _, runs, said = study(value)
    assert len(runs.points) == 4 and "best of 4" in said.out


def test_a_figure_that_the_stages_do_not_have_is_no_reason_to_go_on(study):
    """As eval/gold with data of one's own, or of stage=sft."""
    asked = {"eval/perplexity": 3.0, "eval/loss": 1.1}
    assert refused(study, value=lambda number, config: asked) == (
        "sweep.objective=eval/gold: the stages have no such figure; choose one of eval/loss, eval/perplexity"
    )


def test_what_is_sought_may_be_small_and_of_another_stage(study):
    asked = ("sweep.objective=eval/perplexity", "sweep.direction=minimize")
    code, runs, said = study(lambda number, config: {"eval/perplexity": config.ppo.kl_coef}, *asked)
    smallest = min(config.ppo.kl_coef for config in runs.configs)
    assert code == 0 and f"eval/perplexity {smallest:.4g}" in said.out


def test_a_search_over_several_keys(study):
    _, runs, said = study(peak, "seed=1,2", "sweep.sampler=random", trials=6)
    assert {point["seed"] for point in runs.points} == {"1", "2"} and "seed=" in said.out.splitlines()[-1]


def test_a_preset_with_an_interval_is_searched(presets, tmp_path, capsys, monkeypatch):
    preset(presets, "mine", ppo__kl_coef="interval(0.01,0.5)")
    runs = Runs(tmp_path / "runs", peak)
    asked = ["-m", "+sweeps=mine", f"output_root={tmp_path / 'out'}", "sweep.trials=2"]
    assert searched(monkeypatch, asked, runs) == 0
    assert len({config.ppo.kl_coef for config in runs.configs}) == 2
    assert (tmp_path / "out" / "sweeps" / "mine" / "study.journal").is_file() and "best of 2" in capsys.readouterr().out


def refused(study, *arguments, value=peak):
    with pytest.raises(ConfigError) as error:
        study(value, *arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("arguments", "start", "fix"),
    [
        (("sweep.objective=eval/godl",), "sweep.objective=eval/godl: there is no such metric", "did you mean eval/gold?"),
        (("sweep.objective=zzz",), "sweep.objective=zzz: there is no such metric", "All metrics"),
        (("sweep.direction=up",), "sweep.direction=up: ", "maximize, minimize"),
        (("sweep.sampler=best",), "sweep.sampler=best: ", "tpe, random"),
        (("launcher=slurm",), "launcher.wait=False: ", "launcher.wait=true"),
    ],
)
def test_bad_input_is_refused_before_the_first_trial(study, tmp_path, arguments, start, fix):
    said = refused(study, *arguments)
    assert said.startswith(start) and fix in said.split("; ", 1)[1]
    assert not (tmp_path / "x").exists()


def test_without_optuna_it_says_what_to_install(study, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "pip install 'rlhf[search]'" in refused(study)
    assert not (tmp_path / "x").exists()


def test_other_values_to_choose_from_are_another_search(study):
    """Optuna itself does not let the values of a choice change within a study."""
    assert study(peak, "seed=1,2", trials=2)[0] == 0
    code, runs, _ = study(peak, "seed=1,2,3", trials=3)
    assert code == 0 and runs.points


def test_another_direction_is_not_taken_for_the_same_search(study):
    assert study(peak, trials=3)[0] == 0
    code, runs, said = study(peak, "sweep.direction=minimize", trials=3)
    farthest = max(abs(config.ppo.kl_coef - 0.2) for config in runs.configs)
    assert code == 0 and f"eval/gold {-farthest:.4g}" in said.out


def test_other_fixed_values_are_another_search(study):
    """A figure that was measured with another model says nothing of this one."""
    assert study(peak, "ppo.gamma=0.9", trials=2)[0] == 0
    code, runs, _ = study(peak, "ppo.gamma=0.95", trials=2)
    assert code == 0 and len(runs.points) == 2


@pytest.fixture
def search_cli(cli):
    """`search_cli(*arguments)`: as `cli`, with -m and an interval."""
    return lambda *arguments: cli("-m", INTERVAL, *arguments)


def test_a_dry_run_says_what_would_be_searched_and_leaves_nothing(search_cli, tmp_path):
    code, out, err = search_cli("dry_run=true", "sweep.trials=7", "seed=1,2")
    assert (code, err) == (0, "") and "7 trials" in out and "eval/gold" in out
    assert "ppo.kl_coef" in out and "0.01" in out and "0.5" in out and "seed" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["/proc/nope", "mine.txt"])
def test_where_nothing_can_be_written_no_search_begins(search_cli, tmp_path, place):
    (tmp_path / "mine.txt").write_text("mine")
    code, out, err = search_cli(f"output_root={place}")
    assert (code, out) == (2, "") and err.startswith("error: output_root=") and len(err.splitlines()) == 1
    assert os.listdir(tmp_path) == ["mine.txt"]


@pytest.mark.parametrize("dry", ["true", "false"])
def test_an_interval_beyond_what_its_key_allows_is_refused_before_the_first_trial(search_cli, tmp_path, dry):
    code, out, err = search_cli("ppo.gamma=interval(1.5,2.0)", "sweep.trials=2", f"dry_run={dry}")
    assert (code, out) == (2, "") and not list(tmp_path.iterdir())
    first, second = err.splitlines()
    assert first.startswith("error: ppo.gamma=1.5") and second.startswith("error: ppo.gamma=2.0")
    assert "1" in first.partition("; ")[2]


@pytest.mark.parametrize(
    ("words", "start", "fix"),
    [
        (["sft.eps=interval(1,0)"], "sft.eps=interval(1,0): ", "interval(0.0,1.0)"),
        (["sft.eps=tag(log,interval(0,1))"], "sft.eps=tag(log,interval(0,1)): ", "above 0"),
        (["sft.eps=interval(nan,1)"], "sft.eps=interval(nan,1): ", "two numbers"),
        (["sft.eps=interval(0,inf)"], "sft.eps=interval(0,inf): ", "two numbers"),
        (["sft.eps=tag(lin,interval(0,1))"], "sft.eps=tag(lin,interval(0,1)): ", "tag(log,"),
        (["ppo.gamma=0.9,1.5"], "ppo.gamma=1.5: ", ""),
        (["model=opt-tiny,opt-tine"], "model=opt-tine: ", "did you mean opt-tiny?"),
        (["model=glob(nosuch*)"], "model=glob(nosuch*): ", "choose one of"),
        (["sweep.objective=eval/godl"], "sweep.objective=eval/godl: ", "eval/gold"),
        (["launcher.parallel=1,2"], "launcher.parallel=1,2: ", "one value"),
    ],
)
def test_a_search_that_cannot_work_is_no_plan(search_cli, tmp_path, words, start, fix):
    code, out, err = search_cli(*words, "dry_run=true")
    assert (code, out) == (2, "") and err.startswith(f"error: {start}") and fix in err.partition("; ")[2]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--help", "--cfg job", "--hydra-help", "--info searchpath"])
def test_what_only_shows_starts_no_search(search_cli, tmp_path, flag):
    code, out, err = search_cli(*flag.split(), "sweep.trials=1")
    assert "trial" not in out and not list(tmp_path.iterdir())
    if "help" in flag:
        assert code == 0 and err == "" and ("Groups" in out or "Hydra" in out)
    else:  # as Hydra has it: of -m and --cfg one is left out
        name = flag.split()[0]
        assert code == 2 and err.startswith(f"error: argument={name}: it cannot be given beside --multirun; leave out ")


# --- a journal after a crash -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        *(pytest.param(lambda journal, n=n: journal[: -1 - n], marks=pytest.mark.slow) for n in (0, 1)),
        lambda journal: journal[:-8],  # cut within the last line
        pytest.param(lambda journal: journal + b'{"op_code": 4, "wor', marks=pytest.mark.slow),
        lambda journal: journal + b"\0" * 512,  # blocks that a crashed machine never wrote
        pytest.param(lambda journal: journal + b"\0\0\0\n", marks=pytest.mark.slow),
    ],
    ids=["no newline", "a brace", "more", "half a line more", "zeros", "zeros and a newline"],
)
def test_a_journal_with_a_cut_last_line_goes_on(study, tmp_path, damage):
    assert study(peak, trials=2)[0] == 0
    journal = tmp_path / "x" / "sweeps" / "rlhf" / "study.journal"
    journal.write_bytes(damage(journal.read_bytes()))
    for trials in (3, 4):  # what is written afterwards can be read, too
        code, runs, said = study(peak, trials=trials)
        assert code == 0 and runs.points and f"best of {trials}" in said.out


def test_a_journal_that_is_damaged_further_up_is_refused_and_stays(study, tmp_path):
    assert study(peak, trials=2)[0] == 0
    journal = tmp_path / "x" / "sweeps" / "rlhf" / "study.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1][:5] + b"\n"
    journal.write_bytes(b"".join(lines))
    said = refused(study)
    assert said.startswith(f"study.journal={journal}: line 2 is damaged") and "move the file away" in said
    assert journal.read_bytes() == b"".join(lines)


def test_what_is_no_journal_is_not_cut_to_nothing(tmp_path):
    file = tmp_path / "study.journal"
    file.write_bytes(b"")
    repair_journal(file)
    repair_journal(tmp_path / "none")
    assert file.read_bytes() == b"" and not (tmp_path / "none").exists()


def test_a_lock_that_a_killed_process_left_holds_nobody_up(study, tmp_path):
    assert study(peak, trials=1)[0] == 0
    place = tmp_path / "x" / "sweeps" / "rlhf"
    (place / "study.journal.lock").symlink_to(place / "study.journal")
    began = time.monotonic()
    assert study(peak, trials=2)[0] == 0
    assert time.monotonic() - began < 20  # Optuna takes such a lock over after 30 s

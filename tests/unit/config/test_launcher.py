"""Where stages can run, said before the first one starts; and what a point of a sweep is called."""

import pytest

from rlhf.config.checks import check, check_devices
from rlhf.config.compose import point_name
from rlhf.config.errors import ConfigError


@pytest.fixture
def config(make_config):
    """Two H100 a stage."""
    config = make_config("hardware=h100", "sft.batch_size=16", "reward.batch_size=16")
    config.hardware.gpus_per_node = 2
    return config


def refused(action, config):
    with pytest.raises(ConfigError) as error:
        action(config)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("visible", "parallel", "said"),
    [
        ("0,1", 1, None),
        ("0,1,2,3", 2, None),
        ("MIG-a,MIG-b,MIG-c,MIG-d", 2, None),
        ("0,1,2,3", 3, "launcher.parallel=3: 3 stages of 2 GPUs at once need more than the 4 GPUs here; try 2"),
        ("0,1,2,3,4", 3, "launcher.parallel=3: 3 stages of 2 GPUs at once need more than the 5 GPUs here; try 2"),
        ("0", 1, "hardware.gpus_per_node=2: this machine shows 1 GPUs; set hardware.gpus_per_node=1"),
        ("0", 4, "hardware.gpus_per_node=2: this machine shows 1 GPUs; set hardware.gpus_per_node=1"),
        ("", 1, "hardware.gpus_per_node=2: this machine shows 0 GPUs; try hardware=cpu"),
        ("-1", 1, "hardware.gpus_per_node=2: this machine shows 0 GPUs; try hardware=cpu"),
    ],
)
def test_stages_that_run_at_once_need_gpus_of_their_own(config, monkeypatch, visible, parallel, said):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    config.launcher.parallel = parallel
    if said is None:
        check_devices(config)
    else:
        assert refused(check_devices, config) == said
        if "parallel" in said:
            config.launcher.parallel = int(said.rsplit(" ", 1)[1])
            check_devices(config)


def test_processors_are_shared_by_as_many_stages_as_you_like(make_config):
    config = make_config()
    config.launcher.parallel = 64
    check_devices(config)


def test_what_no_processor_can_train_is_not_sent_to_one(make_config, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    said = refused(check_devices, make_config("model=opt-13b", "hardware=dgx8"))
    assert "hardware=cpu" not in said
    assert "launcher=slurm" in said and "dry_run=true" in said


def test_a_cluster_has_devices_that_are_not_here(config, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config.hardware.nodes, config.launcher.kind = 4, "slurm"
    monkeypatch.setenv("PATH", str(tmp_path))
    said = refused(check_devices, config)
    assert said.startswith("launcher=slurm: there is no SLURM on this machine") and said.endswith(
        "here dry_run=true shows what would run"
    )
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").chmod(0o755)
    check_devices(config)


def test_this_machine_is_one_node(config, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    config.hardware.nodes = 2
    assert refused(check_devices, config).endswith("submit it with launcher=slurm; here dry_run=true shows what would run")


@pytest.mark.parametrize(
    ("key", "value", "fix"),
    [
        ("kind", "pbs", "auto, inline, local, slurm"),
        ("kind", "inline", "try launcher=local"),
        ("parallel", 0, "1"),
        ("threads", 0, "1"),
        ("grace_s", -1.0, "0"),
        ("lock_timeout_s", 0.0, "0"),
    ],
)
def test_a_launcher_that_cannot_work_is_refused(config, set_key, key, value, fix):
    said = refused(check, set_key(config, f"launcher.{key}", value))
    assert said.startswith(f"launcher.{key}={value}: ") and fix in said.split("; ", 1)[1]


# --- names of points -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "typed", "name"),
    [
        (["seed=1", "ppo.kl_coef=0.1", "sft.max_steps=4"], ["-m", "seed=1,2", "ppo.kl_coef=0.1,0.2", "sft.max_steps=4"],
         "seed=1,ppo.kl_coef=0.1"),
        (["seed=1", "model=opt-125m"], ["-m", "seed=range(1,3)", "model=opt-125m"], "seed=1"),
        (["+sweeps=kl", "ppo.kl_coef=0.02", "seed=1"], ["-m", "+sweeps=kl"], "ppo.kl_coef=0.02,seed=1"),  # of a preset
        (["+ppo.x=1"], ["-m", "+ppo.x=1,2"], "ppo.x=1"),
        (["seed=1"], ["-m", "seed=1"], "point"),
        (["zero='0'"], ["-m", "zero='0',3-offload"], "zero=0"),
        (["ppo.reward=/data/my model"], ["-m", "ppo.reward=null,'/data/my model'"], "ppo.reward=_data_my_model-012fd54c"),
    ],
)  # fmt: skip
def test_a_point_is_called_by_what_is_swept(overrides, typed, name):
    assert point_name(overrides, typed) == name


@pytest.mark.parametrize(
    ("typed", "as_hydra_writes"),
    [
        ("dry_run=true", "dry_run=True"),
        ("sft.learning_rate=1e-4", "sft.learning_rate=0.0001"),
        ("sft.max_steps=1_000", "sft.max_steps=1000"),
        ("sft.betas=[0.9, 0.95]", "sft.betas=[0.9,0.95]"),
        ("tracking.wandb.mode=null", "tracking.wandb.mode=null"),
        ('name="a b"', 'name="a b"'),
        ("zero='3'", "zero='3'"),
    ],
)
def test_what_is_typed_alike_for_all_points_is_not_in_the_name_however_hydra_writes_it(typed, as_hydra_writes):
    assert point_name(["seed=7", as_hydra_writes], ["-m", "seed=7,8", typed]) == "seed=7"


def test_long_names_are_short_and_differ():
    overrides = [f"sft.learning_rate={number}.0e-5" for number in range(10)]
    names = {point_name([*overrides, f"seed={seed}"], []) for seed in range(50)}
    assert len(names) == 50 and max(map(len, names)) <= 100
    assert all(name.startswith("sft.learning_rate=0.0e-5,") for name in names)
    assert len(point_name(["x" * 100], [])) == 100 and point_name(["x" * 100], []) == "x" * 100

"""The embedded default truly learns, on the default seed and on three more."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_demo_learns(seed, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run([sys.executable, "-m", "rlhf", f"seed={seed}"], cwd=tmp_path, env=environment, check=True, timeout=600)
    (summary,) = (tmp_path / "outputs" / "runs").glob("*/summary.json")
    stages = json.loads(summary.read_text())["stages"]
    reward, ppo = stages["reward"]["metrics"], stages["ppo"]["metrics"]
    assert reward["eval/accuracy"] >= 0.85 * reward["eval/accuracy_ceiling"]
    assert ppo["eval/gold"] >= ppo["eval/gold_sft"] + 0.5 * ppo["eval/gold_sft_std"]
    assert 0 < ppo["eval/kl_sequence"] < 25

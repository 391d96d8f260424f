"""Every algorithm on rollouts raises the demo's gold reward: the table of docs/algorithms.md, made anew.

Ten minutes of one core, so it runs when asked for: `pytest -m study -n 0 tests/integration/test_study_algorithms.py`.
"""

import json
import subprocess
import sys

import pytest
import yaml
from support.command import ROOT, clean_environment

pytestmark = pytest.mark.study

ALGORITHMS = yaml.safe_load((ROOT / "sweeps" / "algorithms.yaml").read_text())["hydra"]["sweeper"]["params"][
    "algorithm"
].split(",")
SEEDS = (0, 1)
# Standard deviations of the SFT model's gold reward, and nats per response.
LEAST_GAIN, MOST_KL = 0.5, 25


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """The policy's final metrics, by the point's name."""
    place = tmp_path_factory.mktemp("study")
    command = [sys.executable, "-m", "rlhf", "-m", "+sweeps=algorithms", f"seed={','.join(map(str, SEEDS))}"]
    subprocess.run(command, cwd=place, env=clean_environment(place), check=True)
    files = (place / "outputs" / "sweeps" / "algorithms").glob("*/summary.json")
    return {file.parent.name: json.loads(file.read_text())["stages"]["ppo"]["metrics"] for file in files}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_algorithm_raises_the_gold_reward_near_the_reference(policies, algorithm, seed):
    found = policies[f"algorithm={algorithm},seed={seed}"]
    assert (found["eval/gold"] - found["eval/gold_sft"]) / found["eval/gold_sft_std"] >= LEAST_GAIN
    assert 0 < found["eval/kl_sequence"] < MOST_KL

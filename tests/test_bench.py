"""The benchmark's whole path, on the CPU and as small as can be; how fast anything is, is not tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.bench import VARIANTS, table

ROOT = Path(__file__).parents[1]
SMALL = (
    "data.max_prompt_tokens=20", "data.max_response_tokens=12", "rollout.max_new_tokens=12", "ppo.rollout_batch_size=4",
    "ppo.batch_size=4", "bench.repeats=1", "bench.lengths=real",
)  # fmt: skip


def bench(*arguments, cwd):
    environment = {"PYTHONPATH": str(ROOT), "HOME": str(cwd), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rlhf.bench", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.parametrize(("what", "figure"), [("step", "throughput/samples_per_s"), ("rollout", "ms_per_decode_step")])
def test_a_result_holds_figures_recipe_versions_and_device(tmp_path, what, figure):
    done = bench(*SMALL, f"bench.what={what}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "outputs" / "bench").glob(f"bench-{what}-real-opt-tiny-cpu-*.json")
    found = json.loads(file.read_text())
    assert set(found["figures"]) == set(VARIANTS)
    assert all(figures[figure] > 0 for figures in found["figures"].values())
    assert found["recipe"]["response_tokens"] == 12 and found["packages"]["torch"] and found["command"]
    assert figure in done.stdout
    rows = table(file.parent).splitlines()
    assert len(rows) == 3 and "opt-tiny with opt-tiny" in rows[2] and rows[0].count("|") == rows[2].count("|")


def test_bad_input_is_one_line(tmp_path):
    done = bench("bench.what=everything", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: bench.what=everything") and done.stderr.count("\n") == 1

"""A disk that is full or cannot be written, as a user of the command line meets it."""

import os
import subprocess
import sys
from pathlib import Path


def rlhf(*arguments, cwd):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "rlhf", "stage=sft", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_full_disk_is_named_with_what_is_free(small_disk, tmp_path):
    disk = small_disk(16384)
    done = rlhf(f"output_root={disk}/outputs", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: output_root={disk}/outputs: No space left on device: {disk}/outputs/")
    assert line.endswith("(0.0 MiB are free there); choose another directory: output_root=...")


def test_a_plan_is_shown_where_nothing_can_be_written(small_disk, tmp_path):
    disk = small_disk("64k,ro")
    for arguments in (("dry_run=true",), ("-m", "seed=1,2", "dry_run=true")):
        done = rlhf(*arguments, f"output_root={disk}/outputs", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "sft to run, 0 stages done before" in done.stdout
    done = rlhf(f"output_root={disk}/outputs", cwd=tmp_path)
    assert done.returncode == 2 and f"{disk} cannot be written; choose another directory" in done.stderr

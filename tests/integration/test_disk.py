"""A disk that is full or cannot be written, as a user of the command line meets it."""

from support.command import run_rlhf


def test_a_full_disk_is_named_with_what_is_free(small_disk, tmp_path):
    disk = small_disk(16384)
    done = run_rlhf("stage=sft", f"output_root={disk}/outputs", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: output_root={disk}/outputs: No space left on device: {disk}/outputs/")
    assert line.endswith("(0.0 MiB are free there); choose another directory: output_root=...")


def test_a_plan_is_shown_where_nothing_can_be_written(small_disk, tmp_path):
    disk = small_disk("64k,ro")
    for arguments in (("dry_run=true",), ("-m", "seed=1,2", "dry_run=true")):
        done = run_rlhf("stage=sft", *arguments, f"output_root={disk}/outputs", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "sft to run, 0 stages done before" in done.stdout
    done = run_rlhf("stage=sft", f"output_root={disk}/outputs", cwd=tmp_path)
    assert done.returncode == 2 and f"{disk} cannot be written; choose another directory" in done.stderr

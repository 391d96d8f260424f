"""Steps that are not finite: counted, kept, and too many of them in a row end the run."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from rlhf.tracking.nonfinite import Nonfinite, keep_finite


def batch():
    """Tensors as a step has them: whole, cut to columns, one under two names, and one that has a gradient."""
    ids = torch.arange(12).view(3, 4)
    values = torch.full((3, 4), math.nan, requires_grad=True)
    return {"ids": ids, "part": ids[:, 1:], "mask": ids, "values": values * 2, "scores": torch.tensor([1.0, math.inf, 0.0])}


def test_a_step_that_is_finite_leaves_nothing_behind(tmp_path):
    counter = Nonfinite(3, tmp_path / "nonfinite", rank=0)
    assert counter.note(1, None, batch()) == 0.0
    assert not (tmp_path / "nonfinite").exists()


def test_a_step_that_is_not_is_kept_for_inspection(tmp_path):
    counter = Nonfinite(3, tmp_path / "a" / "nonfinite", rank=2)
    given = batch()
    assert counter.note(7, "the loss", given) == 1.0
    kept = load_file(counter.directory / "step-7-rank-2.safetensors")
    assert kept.keys() == given.keys()
    assert all(torch.equal(kept[name].nan_to_num(7), tensor.nan_to_num(7)) for name, tensor in given.items())
    assert json.loads((counter.directory / "step-7.json").read_text()) == {"step": 7, "problem": "the loss"}
    assert len(list(counter.directory.iterdir())) == 2


def test_ranks_keep_their_own_batches_side_by_side(tmp_path):
    for rank in (0, 1):
        Nonfinite(3, tmp_path, rank).note(1, "a score", batch())
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"step-1.json", "step-1-rank-0.safetensors", "step-1-rank-1.safetensors"}


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_the_last_step_in_a_row_that_is_tolerated_ends_the_run(tmp_path, limit):
    counter = Nonfinite(limit, tmp_path, rank=0)
    for step in range(1, limit):
        assert counter.note(step, "the loss", batch()) == 1.0
    times = f"for {limit} steps in a row" if limit > 1 else "at step 1"
    with pytest.raises(FloatingPointError) as error:
        counter.note(limit, "the gradient", batch())
    message = str(error.value)
    assert message.startswith(f"the gradient is not finite {times} (batches: {tmp_path}); lower the learning rate")
    assert "\n" not in message
    assert (tmp_path / f"step-{limit}-rank-0.safetensors").is_file()  # that of the last one too


def test_a_finite_step_in_between_starts_the_count_anew(tmp_path):
    counter = Nonfinite(2, tmp_path, rank=0)
    problems = ["the loss", None, "the loss", None, "the loss"]
    assert [counter.note(step, problem, batch()) for step, problem in enumerate(problems)] == [1.0, 0.0, 1.0, 0.0, 1.0]
    with pytest.raises(FloatingPointError, match="for 2 steps in a row"):
        counter.note(5, "the loss", batch())


BATCH = {"ids": torch.ones(2, 3, dtype=torch.long), "lengths": torch.tensor([3, 2])}


@pytest.mark.parametrize(
    ("precision", "loss", "norm", "problem"),
    [
        ("fp32", 1.0, 2.0, None),
        ("fp32", math.nan, 2.0, "the loss"),
        ("fp32", math.inf, math.nan, "the loss"),
        ("fp32", 1.0, math.nan, "the gradient"),
        ("bf16", 1.0, math.nan, "the gradient"),
        ("fp16", 1.0, math.nan, None),  # the loss scale is falling
        ("fp16", math.nan, math.nan, "the loss"),
    ],
)
def test_what_a_step_of_supervised_training_measured_is_kept_as_far_as_it_is_finite(
    make_config, tmp_path, precision, loss, norm, problem
):
    config = make_config(f"precision={precision}")
    counter, measured = Nonfinite(3, tmp_path, rank=0), {"train/loss": loss, "train/grad_norm": norm, "train/accuracy": 0.5}
    kept = keep_finite(counter, 4, measured, lambda: BATCH, config)
    assert kept.pop("train/nonfinite") == float(problem is not None)
    assert kept == {name: value for name, value in measured.items() if math.isfinite(value)}
    if problem is None:
        assert list(tmp_path.iterdir()) == []
    else:
        assert json.loads((tmp_path / "step-4.json").read_text())["problem"] == problem
        assert load_file(tmp_path / "step-4-rank-0.safetensors").keys() == BATCH.keys()

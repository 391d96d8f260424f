"""The verbs that talk to a model: what is wrong is told in a line, before anything is loaded."""

import pytest


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["chat"], "0 models are named"),
        (["chat", "a", "b"], "2 models are named"),
        (["chat", "a", "--prompt", "x", "--prompts", "y"], "--prompt is given too"),
        (["chat", "a", "--port", "1"], "they are for --web"),
        (["chat", "a", "--web"], "two models are compared, and one is named"),
        (["chat", "a", "b", "--web", "--prompt", "x"], "--prompt=x: it does nothing with --web"),
        (["chat", "a", "--frob"], "`python -m rlhf chat --help` lists the flags"),
        (["chat", "org/name", "ppo.kl_coef=1"], "ppo.kl_coef=1: it decides nothing of a conversation"),
        (["chat", "org/name", "rollout.temperature=-1"], "rollout.temperature=-1.0: out of range"),
        (
            ["chat", "org/name", "rollout.do_sample=false", "rollout.top_k=5"],
            "rollout.top_k=5: with rollout.do_sample=false",
        ),
        (["serve"], "no model is named"),
        (["serve", "a", "a"], "a model is named twice"),
        (["serve", "a", "--port", "70000"], "a port is at most 65535"),
    ],
)
def test_what_cannot_be_talked_to_is_told(cli, words, problem):
    code, printed, told = cli(*words)
    assert (code, printed) == (2, "") and problem in told
    assert all(line.startswith("error: ") for line in told.splitlines())

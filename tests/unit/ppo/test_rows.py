"""Every numbered choice of PPO has a test that names it."""

import re

from support.command import TESTS

import rlhf.ppo


def test_every_choice_is_tested():
    listed = {int(number) for number in re.findall(r"^ *(\d+)  ", rlhf.ppo.__doc__, flags=re.MULTILINE)}
    text = "\n".join(file.read_text() for file in TESTS.rglob("test_*.py"))
    named = {int(number) for rows in re.findall(r"# rows? ([\d, ]+)", text) for number in re.findall(r"\d+", rows)}
    assert len(listed) == 33
    assert listed <= named, f"no test names {sorted(listed - named)}"

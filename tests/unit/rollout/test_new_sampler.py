"""A sampler of somebody else's is one file of Python and one of YAML; the one shown here is that of docs/extending.md."""

import re
import subprocess
import sys

import pytest
from support.command import ROOT, clean_environment
from support.rollout_compare import disagreements
from support.tiny_models import built, generate, policy_engine, prompts, random_numbers, save_models

from rlhf.catalog.sampler import SAMPLERS
from rlhf.config.checks import check
from rlhf.config.errors import ConfigError
from rlhf.config.keys import KEYS

pytestmark = pytest.mark.rounding

PAGE = (ROOT / "docs" / "extending.md").read_text()
SHOWN = PAGE[PAGE.index("## A sampler") :]
PYTHON, YAML = (re.search(rf"```{language}\n(.*?)```", SHOWN, re.S).group(1) for language in ("python", "yaml"))
PLAIN = "rollout.engine=lab.plain:PlainSampler"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    found = tmp_path_factory.mktemp("sampler")
    (found / "lab").mkdir()
    (found / "lab" / "plain.py").write_text(PYTHON)
    (found / "lab" / "half.py").write_text("class Half:\n    def sync(self): ...\n    def generate(self): ...\n")
    (found / "conf" / "rollout").mkdir(parents=True)
    (found / "conf" / "rollout" / "plain.yaml").write_text(YAML)
    return found


@pytest.fixture(autouse=True)
def importable(place, monkeypatch):
    monkeypatch.syspath_prepend(place)


def test_it_draws_what_the_other_samplers_draw(make_config, tokenizer):
    config = make_config(PLAIN, "rollout.max_new_tokens=8", "rollout.temperature=3.0")
    engine, batch, numbers = policy_engine(config, tokenizer), prompts(config, tokenizer), random_numbers(config, 3)
    found = generate(engine, batch, numbers, tokenizer, config.rollout)
    for name in ("hf", "hybrid"):
        other = generate(engine, batch, numbers, tokenizer, make_config(f"rollout={name}", *SAMPLING).rollout)
        assert disagreements(engine, batch, numbers, found, other, config.rollout, tokenizer.eos_token_id) == []


SAMPLING = "rollout.max_new_tokens=8", "rollout.temperature=3.0"


def test_ppo_trains_with_it(make_config, tokenizer, tmp_path):
    config = make_config(
        PLAIN, "rollout.max_new_tokens=6", "ppo.rollout_batch_size=4", "ppo.batch_size=4", "ppo.max_steps=1"
    )
    loader, engine, trainer = built(config, save_models(config, tokenizer, tmp_path), tokenizer)
    trainer.train_rlhf(trainer.generate_experience(next(iter(loader))))
    assert trainer.metrics["policy/sampler_gap"] < 1e-5
    engine.release()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ((PLAIN, "rollout.stop=[The]"), r"^rollout.stop=\['The'\]: this sampler has no stop texts; set rollout.stop=\[\]$"),
        (
            ("rollout.engine=lab.nothing:Sampler",),
            r"^rollout.engine=lab.nothing:Sampler: it cannot be imported \(No module",
        ),
        (("rollout.engine=lab.plain:Other",), r"^rollout.engine=lab.plain:Other: it cannot be imported \(.*Other"),
        (
            ("rollout.engine=lab.half:Half",),
            r"^rollout.engine=lab.half:Half: it has no problem, release; choose one of hf, ",
        ),
    ],
)
def test_what_it_cannot_serve_and_what_is_no_sampler_is_said_before_anything_starts(make_config, options, line):
    with pytest.raises(ConfigError, match=line):
        check(make_config(*options))


@pytest.mark.slow
def test_a_file_of_yaml_makes_it_an_option(place):
    words = [
        sys.executable, "-m", "rlhf", "--config-dir=conf", "rollout=plain", "data.demo.demonstrations=60",
        "data.demo.rounds=1", "data.demo.heldout_prompts=8", "sft.max_steps=2", "reward.max_steps=2", "ppo.max_steps=1",
        "ppo.rollout_batch_size=8", "ppo.batch_size=8", "rollout.max_new_tokens=8", "launcher.kind=inline",
    ]  # fmt: skip
    environment = clean_environment(place) | {"PYTHONPATH": f"{place}:{ROOT}"}
    done = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(place.glob("outputs/stages/ppo-*/result.json"))


def test_the_schema_names_the_samplers_of_this_package():
    assert KEYS["rollout.engine"].choices == tuple(SAMPLERS)

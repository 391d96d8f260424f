"""Which template `auto` is for a stage, and what enters its fingerprint."""

import json
from dataclasses import replace

import pytest

from rlhf.experiment.fingerprint import fingerprint, result_config
from rlhf.experiment.resolve import resolve_for_stage
from rlhf.experiment.templates import PLAIN


@pytest.fixture
def chosen(make_config):
    """`chosen(directory)`: the template of supervised fine-tuning of the model there."""

    def choose(directory, *overrides, stage="sft", inputs=None):
        config = make_config(*overrides)
        config.model.path = None if directory is None else str(directory)
        return resolve_for_stage(config, stage, inputs or {}).data.template

    return choose


def model(place, **files):
    """A directory with these files, and nothing else."""
    place.mkdir(parents=True)
    for name, text in files.items():
        (place / name.replace("__", ".")).write_text(text)
    return place


def test_auto_is_chat_where_the_tokenizer_has_a_chat_template(chosen, tmp_path):
    file, key = (
        {"chat_template__jinja": "{{ messages }}"},
        {"tokenizer_config__json": '{"chat_template": "{{ messages }}"}'},
    )
    assert chosen(model(tmp_path / "file", **file)) == "chat"
    assert chosen(model(tmp_path / "key", **key)) == "chat"
    assert chosen(model(tmp_path / "none", tokenizer_config__json="{}")) == "plain"
    assert chosen(model(tmp_path / "broken", tokenizer_config__json="[")) == "plain"
    assert chosen(model(tmp_path / "saved", chat_template__jinja=PLAIN + "{{ messages }}")) == "plain"
    assert chosen(None) == "plain"
    assert chosen(tmp_path / "file", "data.template=plain") == "plain"
    assert chosen(tmp_path / "file", "data.format=deepspeed-chat") == "plain"


def test_a_stage_has_the_template_of_the_stage_that_it_starts_from(chosen, tmp_path):
    place = model(tmp_path / "sft-1" / "model", chat_template__jinja="{{ messages }}")
    for template in ("chat", "plain"):
        (place.parent / "spec.json").write_text(json.dumps({"config": {"data": {"template": template}}}))
        assert chosen(None, stage="ppo", inputs={"actor": str(place)}) == template
    (place.parent / "spec.json").unlink()  # it is a model of other origin
    assert chosen(None, stage="ppo", inputs={"actor": str(place)}) == "chat"
    assert chosen(None, stage="ppo", inputs={"actor": "outputs/stages/sft-2/model"}) == "plain"  # still to run


def test_plain_leaves_fingerprints_as_they_were_and_a_jinja_file_counts_by_its_content(make_config, tmp_path):
    config, file = make_config(), tmp_path / "own.jinja"
    before = fingerprint(config, "sft", {})
    found = {}
    for name in ("plain", "chat", str(file)):
        file.write_text("{{ messages }}")
        config.data = replace(config.data, template=name)
        found[name] = fingerprint(config, "sft", {})
    assert found["plain"] == before and len(set(found.values())) == 3
    assert str(file) not in str(result_config(config, "sft"))
    file.write_text("{{ messages[0] }}")
    assert fingerprint(config, "sft", {}) != found[str(file)]

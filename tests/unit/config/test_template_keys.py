"""The keys that say how conversations become text."""

import pytest

from rlhf.config.checks import check
from rlhf.config.errors import ConfigError


def test_a_backslash_n_on_the_command_line_is_a_line_break(make_config):
    config = make_config(r"data.prompt_format='Q: {prompt}\nA:'", r"data.response_format='\n{response}'")
    assert (config.data.prompt_format, config.data.response_format) == ("Q: {prompt}\nA:", "\n{response}")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.template=chatml"], "data.template=chatml: there is no such template; choose auto, plain or chat"),
        (["data.template=gone.jinja"], "data.template=gone.jinja: there is no such file; choose auto, plain or chat"),
        (["data.response_format='{answer}'"], "data.response_format={answer}: it has no place for the response"),
        (["data.response_format='{response} {'"], "other braces must be doubled; write {response} {{"),
        (["data.template=chat", "data.format=deepspeed-chat"], "the texts of DeepSpeed-Chat, which are no conversations"),
        (["data.response_format='{response}'", "data.format=deepspeed-chat"], "data.format=deepspeed-chat has its own"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(make_config, overrides, said):
    with pytest.raises(ConfigError) as error:
        check(make_config(*overrides))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_model_that_trains_its_tokenizer_has_its_own_chat_template(make_config, tmp_path):
    (file := tmp_path / "own.jinja").write_text("{{ messages }}")
    with pytest.raises(ConfigError, match=r"has its own chat template; set data\.template=chat"):
        check(make_config(f"data.template={file}"))
    check(make_config("data.template=chat"))

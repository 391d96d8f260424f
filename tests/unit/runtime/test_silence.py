"""What the libraries say of themselves in a process that trains."""

import pytest
from transformers.utils import logging

from rlhf.runtime.distributed import silence_libraries


@pytest.mark.parametrize(("chosen", "silenced"), [(None, True), ("error", True), ("info", False)])
def test_transformers_is_silent_though_imported_before_unless_the_user_wants_it(monkeypatch, chosen, silenced):
    former = logging.get_verbosity()
    if chosen is None:
        monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    else:
        monkeypatch.setenv("TRANSFORMERS_VERBOSITY", chosen)
    try:
        logging.set_verbosity_info()
        silence_libraries()
        assert logging.get_verbosity() == (logging.ERROR if silenced else logging.INFO)
    finally:
        logging.set_verbosity(former)

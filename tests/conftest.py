"""Shared fixtures: the real configuration as Hydra composes it, the demo data, its tokenizer, ragged batches."""

import copy
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import pytest
from omegaconf import OmegaConf

from rlhf.config.command import command_of
from rlhf.config.compose import rewrite_words
from rlhf.config.points import Composer
from rlhf.config.schema import Config, Data
from rlhf.experiment.stopping import abort_requested, received_signals, stop_requested

hypothesis.settings.register_profile("rlhf", deadline=None, database=None, derandomize=True, max_examples=30)
hypothesis.settings.load_profile("rlhf")

# pytest's own process imports readline, which leaves a terminal's size to the processes that run tests; they have none.
for size in ("COLUMNS", "LINES"):
    os.environ.pop(size, None)


# The files that take longest, begun first: else one process of the two would have nothing to do at the end.
LONGEST = (
    "integration/test_resume.py", "integration/test_demo_learns.py", "integration/test_ranks.py",
    "integration/test_families.py", "integration/test_sweep.py", "integration/test_search.py",
    "integration/test_options.py", "integration/test_pipeline.py", "integration/test_scheduler_processes.py",
    "integration/test_readme.py", "integration/test_new_stage.py", "integration/test_bench.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Order the files, and keep the order of the tests in each."""
    ranked = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranked.get(item.path, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory):
    """Keep what the datasets library caches out of the home directory."""
    os.environ["HF_DATASETS_CACHE"] = str(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module", autouse=True)
def few_objects():
    """Let the garbage collector, which every stage calls, look at the objects of this module alone: the libraries have
    millions, and looking at them takes half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def torch_linear():
    """Undo what DeepSpeed does to torch at ZeRO stage 3, for the tests that follow."""
    yield
    if "torch" in sys.modules:
        import torch

        torch.nn.functional.linear = torch._C._nn.linear


@pytest.fixture(autouse=True)
def not_asked_to_stop():
    """Leave no request to stop to the tests that follow in this process: their stages would save and end."""
    yield
    stop_requested.clear()
    abort_requested.clear()
    received_signals.clear()


@cache
def composed(overrides: tuple[str, ...]) -> Config:
    """conf/ with these overrides, typed, each composed once (test_points.py shows that this is what Hydra composes)."""
    with composer() as entered:
        return entered.convert(entered.compose(rewrite_words(list(overrides))))


@cache
def composer() -> Composer:
    """The composer of all tests, which reads the files of each choice of options once; Hydra takes a sixth of a second."""
    return Composer(command_of([]))


@pytest.fixture(scope="session")
def make_config(tmp_path_factory) -> Callable[..., Config]:
    """`make_config("ppo.gamma=0.9", ...)`: a fresh Config that the test may change. All tests share tokenised data."""
    root = str(tmp_path_factory.mktemp("outputs"))

    def make(*overrides):
        config = copy.deepcopy(composed(overrides))
        if config.output_root == "outputs":
            config.output_root = root
        return config

    return make


@pytest.fixture(scope="session")
def load_config(make_config) -> Callable[..., Config]:
    """`load_config("ppo.gamma=0.9", ...)`: what rlhf.load_config gives, by the composer of all tests."""
    from rlhf.cli.prepare import resolve_config
    from rlhf.planner.auto import choose_layout

    def load(*overrides):
        config = resolve_config(make_config(*overrides))
        return choose_layout(config, config.stages[-1]).config

    return load


@pytest.fixture(scope="session")
def data_option() -> Callable[[str], Data]:
    """`data_option("alpaca")`: the group `data` with this option, without a configuration around it."""

    def load(option):
        with composer() as entered:
            return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Data), entered.load_data(option)))

    return load


@pytest.fixture
def cli(monkeypatch, tmp_path, capsys):
    """`cli(*arguments)`: run the program in this process, in a directory of its own; the exit code, and what it printed to
    stdout and to stderr."""
    from hydra.core.global_hydra import GlobalHydra

    from rlhf.cli import main

    def call(*arguments):
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["rlhf", *arguments])
        code, said = main(), capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return code, said.out, said.err

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    yield call
    GlobalHydra.instance().clear()


@pytest.fixture(scope="session")
def set_key() -> Callable[[Config, str, object], Config]:
    """`set_key(config, "ppo.gamma", 0.9)` changes a value by its dotted key and returns the config."""

    def change(config, key, value):
        *groups, leaf = key.split(".")
        place = config
        for group in groups:
            place = getattr(place, group)
        assert hasattr(place, leaf), key
        setattr(place, leaf, value)
        return config

    return change


@pytest.fixture(scope="session")
def demo_data(make_config):
    """The demo data set of the default configuration."""
    from rlhf.data.records import load_dataset

    return load_dataset(make_config())


@pytest.fixture(scope="session")
def tokenizer(make_config, demo_data):
    """The built-in tokenizer, trained on the demo data."""
    from rlhf.models.tokenizer import tokenizer_corpus, train_tokenizer

    config = make_config()
    return train_tokenizer(tokenizer_corpus(config, demo_data), config.data.tokenizer_vocab_size)


@pytest.fixture(scope="session")
def models(make_config, tokenizer, tmp_path_factory):
    """The directories of a random actor and a random reward model; not to be changed."""
    from support.tiny_models import save_models

    return save_models(make_config(), tokenizer, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def smooth_models(make_config, tokenizer, tmp_path_factory):
    """As `models`, of smooth activation, for tests that compare gradients (rounding.py says why); not to be changed."""
    from support.tiny_models import save_models, smooth_opt

    with smooth_opt():
        return save_models(make_config(), tokenizer, tmp_path_factory.mktemp("smooth"))


@pytest.fixture(scope="session")
def ragged():
    """`ragged(seed, rows, width, n)`: a right-padded mask with at least one token a row, and n float64 tensors of its
    shape that hold numbers everywhere, padding included."""
    import torch

    def make(seed, rows, width, columns):
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, width + 1, (rows,), generator=generator)
        mask = (torch.arange(width) < lengths[:, None]).long()
        return mask, *(torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(columns))

    return make


@pytest.fixture(scope="session")
def poison():
    """`poison(values, mask)`: the values with NaN wherever the mask is 0."""
    import torch

    return lambda values, mask: torch.where(mask.bool(), values, torch.nan)


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(bytes)`: a file system of that size, or of another one when it is called again."""
    place = tmp_path / "disk"
    place.mkdir()

    def resize(size):
        how = "remount," if os.path.ismount(place) else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{how}size={size}", "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        return place

    yield resize
    if os.path.ismount(place):
        subprocess.run(["umount", "-l", str(place)], check=True)

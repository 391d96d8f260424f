"""Download what an experiment needs, on a machine that has network, for one that has none.

    python -m rlhf fetch model=opt-13b hardware=dgx8           # models, tokenizers and data of its stages, into HF_HOME
    python -m rlhf fetch --list model=opt-13b hardware=dgx8    # only list them, with sizes; needs no network
    python -m rlhf fetch -m model=opt-1.3b,opt-6.7b            # of all points of a sweep

It takes the overrides of the run itself. A run on a machine without network finds what was downloaded where HF_HOME is the
same directory, and HF_HUB_OFFLINE=1 keeps it from asking the hub. What is in the cache already is not downloaded again.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf.catalog.stage import is_stage, kind_of
from rlhf.cli.arguments import run_verb
from rlhf.config.command import read_command
from rlhf.config.errors import ConfigError, first_line, raise_problems
from rlhf.config.hub import REACH_S, find_hub_problem
from rlhf.config.inputs import check_inputs, is_hub_id
from rlhf.config.keys import get_key
from rlhf.config.points import Composer
from rlhf.config.schema import Config, Model
from rlhf.config.sources import Source, list_sources
from rlhf.config.terminal import Terminal, plural
from rlhf.data.check import count_without_download
from rlhf.data.hub import load_split

FLAGS = {"-h", "--help", "--list"}
# Files beside the weights: configuration, tokenizer, chat template.
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
GIB, BYTES_PER_WEIGHT = 2**30, 2


@dataclass(frozen=True)
class Download:
    """A model or a data set of the hub, and the key that names it. `about_bytes` is what is known of a model's size without
    asking the hub; of a data set the `config` and the splits are read."""

    kind: str
    name: str
    key: str
    revision: str | None = None
    about_bytes: int = 0
    file: str | None = None
    code: bool = False
    config: str | None = None
    data_dir: str | None = None
    splits: tuple[str, ...] = ()


def main(arguments: list[str]) -> int:
    """List or download what the arguments describe; returns the exit code: 0, 1 if a download failed, 2 for bad input."""
    return run_verb(list_or_download, arguments, str(__doc__))


def list_or_download(arguments: list[str], console: Terminal) -> int:
    """List what the arguments describe, and download it unless --list is among them; returns the exit code."""
    downloads = find_downloads(compose_all([word for word in arguments if word not in FLAGS]))
    sizes = {download: measure(download) for download in downloads}
    print_downloads(sizes, console)
    if "--list" in arguments or not downloads:
        return 0
    check_reach(downloads)
    return download_all(downloads, console)


def compose_all(words: list[str]) -> list[Config]:
    """Compose the configurations of all points. Raises ConfigError."""
    with Composer(read_command(words)) as composer:
        configs = [composer.compose_job(overrides, number).config for number, overrides in enumerate(composer.points)]
    raise_problems(problem for config in configs for problem in check_inputs(config))
    return configs


def find_downloads(configs: Iterable[Config]) -> list[Download]:
    """Find what the stages of some configurations read from the hub, each once."""
    found: dict[tuple[str | tuple[str, ...] | None, ...], Download] = {}
    for download in (download for config in configs for download in list_downloads(config)):
        read = download.config, download.data_dir, download.splits, download.file
        found.setdefault((download.kind, download.name, download.revision, *read), download)
    return list(found.values())


def list_downloads(config: Config) -> Iterator[Download]:
    """Yield what the stages of a configuration read from the hub, in their order."""
    kinds = [kind_of(stage) for stage in config.stages if is_stage(stage)]
    for kind in kinds:
        model: Model | None = None if kind.loads is None else getattr(config, kind.loads)
        if model is not None and is_hub_id(model.path):
            yield model_download(model, f"{kind.loads}.path")
        for given in kind.find_inputs(config):
            value = get_key(config, given.key)
            if given.holds == "model" and is_hub_id(value) and value not in {other.name for other in kind.inputs}:
                known = next((m for m in (config.model, config.reward_model) if m.path == value), None)
                yield model_download(known, given.key) if known else Download("model", str(value), given.key)
    ptx = config.ppo.ptx
    if any(kind.records is not None for kind in kinds):
        yield from (data_download(source) for source in list_sources(config.data) if source.is_on_hub)
    if config.ppo.ptx_coef > 0 and ptx.source == "hub" and ptx.hub is not None:
        yield Download("dataset", ptx.hub, "ppo.ptx.hub", ptx.revision, config=ptx.config, splits=(ptx.split,))


def data_download(source: Source) -> Download:
    """Return the splits of a set of the hub."""
    hub, splits = source.keys.hub, tuple(source.splits())
    key, where = source.key("train"), hub.data_dir
    return Download("dataset", str(hub.name), key, hub.revision, config=hub.config, data_dir=where, splits=splits)


def model_download(model: Model, key: str) -> Download:
    """Return a model of the configuration, in 16-bit floats as far as is known."""
    size = BYTES_PER_WEIGHT * model.num_parameters
    return Download("model", str(model.path), key, model.revision, size, model.gguf_file, model.trust_remote_code)


def measure(download: Download) -> tuple[int, bool]:
    """Return the bytes of a download, and whether the hub says so; else they are those that its number of weights tells,
    or 0."""
    if find_hub_problem(download.name, download.revision, download.kind) is not None:
        return download.about_bytes, False
    from huggingface_hub import HfApi

    api = HfApi()
    ask = api.model_info if download.kind == "model" else api.dataset_info
    files = ask(download.name, revision=download.revision, timeout=REACH_S, files_metadata=True).siblings or []
    patterns = choose_files(download, [file.rfilename for file in files])
    return sum(file.size or 0 for file in files if any(Path(file.rfilename).match(wanted) for wanted in patterns)), True


def choose_files(download: Download, names: list[str]) -> list[str]:
    """Return the patterns of the files that are read: of a model those beside the weights, and the weights in one
    format."""
    if download.kind == "dataset":
        return ["*"]
    if download.file is not None:
        return [*SMALL_FILES, download.file]
    safe = any(name.startswith("model") and ".safetensors" in name for name in names)
    weights = "model*.safetensors*" if safe else "pytorch_model*.bin*"
    return [*SMALL_FILES, weights, *(["*.py"] if download.code else [])]


def print_downloads(sizes: dict[Download, tuple[int, bool]], console: Console) -> None:
    """Print a table of downloads with their sizes."""
    if not sizes:
        console.print("nothing to download: models and data are here, or made by code")
        return
    table = Table(title="To download", title_justify="left")
    for column in ("", "name", "named by", "GiB"):
        table.add_column(column, justify="right" if column == "GiB" else "left", no_wrap=column == "GiB")
    for download, (size, sure) in sizes.items():
        shown = "?" if size == 0 else f"{'' if sure else 'about '}{size / GIB:.2f}"
        revision = f" at {download.revision}" if download.revision else ""
        kind = "model" if download.kind == "model" else "data set"
        table.add_row(kind, Text(f"{download.name}{revision}"), download.key, shown)
    console.print(table)
    whole = sum(size for size, _ in sizes.values())
    about = "" if all(sure for _, sure in sizes.values()) else "at least about "
    console.print(f"{plural(len(sizes), 'download')}, {about}{whole / GIB:.1f} GiB, into {cache_directory()}")


def print_unseen(configs: list[Config], console: Console) -> None:
    """Say what was not looked at, since it is on the hub, and where the number of steps is from."""
    if downloads := find_downloads(configs):
        names = ", ".join(dict.fromkeys(download.name for download in downloads))
        console.print(f"not looked at, since it is on the hub: {names} (`python -m rlhf fetch` gets it)", soft_wrap=True)
    lines = []
    for config in configs:
        sets = ", ".join(str(source.keys.hub.name) for source in list_sources(config.data) if source.is_on_hub)
        if sets and (counts := count_without_download(config, "train")):
            lines.append(f"steps by the published {counts.prompts:,} rows of {sets}")
    for line in dict.fromkeys(lines):
        console.print(line, soft_wrap=True)


def cache_directory() -> str:
    """Return the directory of the libraries' caches, HF_HOME."""
    from huggingface_hub import constants

    return str(constants.HF_HOME)


def check_reach(downloads: list[Download]) -> None:
    """Check that everything is within reach. Raises ConfigError, once for all that is not."""
    problems = []
    for download in downloads:
        if problem := find_hub_problem(download.name, download.revision, download.kind):
            page = f"https://huggingface.co/{'datasets/' if download.kind == 'dataset' else ''}{download.name}"
            licence = f"accept its licence at {page} and set HF_TOKEN, if it has one"
            fix = f"type this where there is network; {licence}"
            problems.append(ConfigError(download.key, download.name, problem, fix))
    raise_problems(problems)


def download_all(downloads: list[Download], console: Console) -> int:
    """Download one after another, and say how a run finds them; returns the exit code."""
    failed = 0
    for download in downloads:
        try:
            fetch(download)
        except Exception as error:  # the HTTP client's own errors are no public names
            console.print(Text.assemble(("✗", "red"), f" {download.name}: {first_line(error)}"))
            failed += 1
        else:
            console.print(Text.assemble(("✓", "green"), f" {download.name}"))
    if failed:
        console.print(f"{plural(failed, 'download')} failed; typed again, the command goes on with what is left")
        return 1
    console.print(f"where there is no network: HF_HOME={cache_directory()} HF_HUB_OFFLINE=1 python -m rlhf ...")
    return 0


def fetch(download: Download) -> None:
    """Download into the cache, as the stages read it from there."""
    if download.kind == "dataset":
        for split in download.splits:
            load_split(download.name, download.config, split, download.revision, download.key, download.data_dir)
        return
    from huggingface_hub import HfApi, snapshot_download

    found = HfApi().model_info(download.name, revision=download.revision).siblings or []
    patterns = choose_files(download, [file.rfilename for file in found])
    snapshot_download(download.name, revision=download.revision, allow_patterns=patterns)

"""What tokenised data costs by the number of records: `python tests/support/measure_data.py [FILE]` makes 1,000, 10,000 and
100,000 comparisons, encodes them once, and opens them as a rank does; prints that, and writes it to a JSON file.

Each measurement is a process of its own. Of a rank it tells what it holds, and the processor seconds that it takes from the
imports on until it has its first batch: with the tokenised data, and with all records in lists.
"""

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
COUNTS, BATCH = (1_000, 10_000, 100_000), 64
WORDS = ("the", "red", "blue", "kettle", "lamp", "is", "good", "quick", "very", "house", "wipe", "clean", "with", "water")


def write_pairs(path: Path, count: int) -> None:
    """Write pairs of about 60 and 40 tokens."""
    draw = random.Random(0)

    def say(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words))

    with path.open("w") as stream:
        for number in range(count):
            row = {
                "prompt": f"{number}: {say(40)}",
                "chosen": say(draw.randint(10, 60)),
                "rejected": say(draw.randint(10, 60)),
            }
            stream.write(json.dumps(row) + "\n")


def resident() -> float:
    """What this process holds of memory of its own, in MiB: pages of files, which processes share, do not count."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no RssAnon")


def cpu_seconds() -> float:
    """Return the processor time of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def work(how: str, directory: str) -> dict[str, float]:
    """Do what a process is started for."""
    from texts import encode_comparisons

    from rlhf import load_config
    from rlhf.data.records import load_dataset
    from rlhf.data.templates import build_template
    from rlhf.data.tokenized import DataSource, open_data
    from rlhf.data.tokens import comparison_batch
    from rlhf.models.tokenizer import load_tokenizer

    files = f"data.files.train={directory}/train.jsonl", f"data.files.heldout={directory}/heldout.jsonl"
    lengths = "data.max_prompt_tokens=128", "data.max_response_tokens=128"
    config = load_config("data=files", *files, *lengths, f"output_root={directory}/outputs")
    tokenizer = load_tokenizer(f"{directory}/tokenizer", "model.path")
    before, start = resident(), cpu_seconds()
    if how == "lists":
        pairs = encode_comparisons(load_dataset(config).train.comparisons, build_template(config.data, tokenizer), True)
    else:
        pairs = open_data(DataSource(config), tokenizer, "comparisons", "train", True)
    draw = random.Random(1)
    comparison_batch([pairs[draw.randrange(len(pairs))] for _ in range(BATCH)], 0)
    seconds, held = cpu_seconds() - start, resident() - before
    start = cpu_seconds()
    for _ in range(20):
        [pairs[draw.randrange(len(pairs))] for _ in range(BATCH)]
    batch_ms = (cpu_seconds() - start) / 20 * 1000
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"seconds": seconds, "held_mib": held, "batch_ms": batch_ms, "peak_mib": peak}
    return {name: round(value, 2) for name, value in found.items()}


def run(how: str, directory: str) -> dict[str, float]:
    """Measure in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--work", how, directory]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(file: Path | None) -> None:
    """Measure all numbers of records."""
    from rlhf.models.tokenizer import train_tokenizer

    rows = []
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as directory:
            write_pairs(Path(directory) / "train.jsonl", count)
            write_pairs(Path(directory) / "heldout.jsonl", 10)
            train_tokenizer([" ".join(WORDS)] * 3, 400).save_pretrained(f"{directory}/tokenizer")
            row = {"records": count} | {how: run(how, directory) for how in ("make", "open", "lists")}
            size = sum(path.stat().st_size for path in Path(directory, "outputs", "data").rglob("*") if path.is_file())
            rows.append(row | {"disk_mib": round(size / 2**20, 1)})
        shown = "; ".join(f"{how} {row[how]['seconds']} s, {row[how]['held_mib']} MiB" for how in ("make", "open", "lists"))
        print(f"{count:,} pairs: {shown}; {rows[-1]['disk_mib']} MiB on disk", flush=True)
    if file is not None:
        command = f"OMP_NUM_THREADS=1 python tests/support/measure_data.py {file.name}"
        cores = len(os.sched_getaffinity(0))
        told = {"command": command, "date": time.strftime("%Y-%m-%d"), "cores": cores, "batch": BATCH, "rows": rows}
        file.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        print(json.dumps(work(*sys.argv[2:4])))
    else:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)

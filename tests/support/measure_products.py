"""The products of one decode step of OPT-125M's shape on a CPU, in fp32: `python tests/support/measure_products.py [FILE]`
times them in turn, by rows, by nn.Linear's way, by columns (models/step/layers.py) and with packed weights
(models/step/packed.py), and the packing; prints medians, and writes a JSON file. Times are the processor's, of one thread,
and the weights of all layers are read in turn, so that no cache holds them.
"""

import json
import platform
import statistics
import sys
import time
from functools import partial
from itertools import starmap
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F

from rlhf.models.step import packed
from rlhf.models.step.layers import Linear

LAYERS, ROUNDS, ROWS = 12, 7, (1, 2, 4, 8, 16, 32, 64)
SHAPES = (*[(768, 768)] * 4 * LAYERS, *[(3072, 768)] * LAYERS, *[(768, 3072)] * LAYERS, (50272, 768))


def milliseconds(run):
    """Return the processor's time for a function, and what it returns."""
    began = time.thread_time()
    found = run()
    return 1e3 * (time.thread_time() - began), found


def by_columns(product, x):
    """Return the product with the weight first, [N, B]."""
    return torch.mm(product.weight, x.t().contiguous())


WAYS = {
    "linear": lambda product, _, x: F.linear(x, product.weight),
    "columns": lambda product, _, x: by_columns(product, x),
    "packed": lambda _, kept, x: kept(x),
}


def main(file=None):
    """Measure and print."""
    torch.set_num_threads(1)
    products, ready, packing = [Linear(torch.randn(shape)) for shape in SHAPES], [], []
    for _ in range(ROUNDS):
        ready.clear()
        took, made = milliseconds(lambda: [packed.pack(product) for product in products])
        packing.append(took)
        ready.extend(made)
        del made
    told = {"packing": statistics.median(packing)}
    print(f"packing {told['packing']:.0f} ms")
    for rows in ROWS:
        inputs = {width: torch.randn(rows, width) for width in (768, 3072)}
        given = [(product, kept, inputs[product.weight.size(1)]) for product, kept in zip(products, ready, strict=True)]
        times = {way: [] for way in WAYS}
        for _ in range(ROUNDS):
            for way, multiply in WAYS.items():
                times[way].append(milliseconds(partial(list, starmap(multiply, given)))[0])
        told[rows] = {way: [statistics.median(all_of), min(all_of), max(all_of)] for way, all_of in times.items()}
        print(rows, *(f"{way} {found[0]:.0f} ({found[1]:.0f} to {found[2]:.0f})" for way, found in told[rows].items()))
    if file:
        machine = {"processor": platform.processor() or platform.machine(), "load": psutil.getloadavg()}
        versions = {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "unit": "ms of the processor"}
        Path(file).write_text(json.dumps({**versions, **machine, "products": told}, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

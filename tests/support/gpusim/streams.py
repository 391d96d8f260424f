"""The order of a GPU's work: which of it is known to be done before which, by vector clocks.

Each stream, and the host, counts what it was given (`clocks[stream][stream]`) and knows how far each other stream had come
when it last waited for it. A tensor may be read where its last write is known to be done, and written where its last reads
are, too.
"""

from collections import Counter

from support.gpusim.tensors import GpuError

HOST = -1


class StreamOrder:
    """What is known of the order of work on the memory of one device."""

    def __init__(self):
        self.clocks: dict[int, Counter[int]] = {HOST: Counter()}
        self.writes: dict[int, tuple[int, int]] = {}
        self.reads: dict[int, dict[int, int]] = {}

    def clock(self, stream):
        """Return how far each stream is known, on this one, to have come."""
        return self.clocks.setdefault(stream, Counter())

    def wait(self, stream, known):
        """Let what comes next on a stream, or on the host, wait for all that another clock knows."""
        self.clocks[stream] = self.clock(stream) | known

    def is_done(self, stream):
        """Whether the host has seen all of a stream's work done."""
        return self.clocks[HOST][stream] >= self.clock(stream)[stream]

    def start(self, stream, reads, writes, what):
        """Give a stream, or the host, a piece of work on memory, by its numbers. Raises GpuError, which names `what()` did
        it, where another stream, or the host, may still be at it."""
        if stream != HOST:
            self.wait(stream, self.clock(HOST))  # what the host has seen done was done before it gave this work
        clock = self.clock(stream)
        for key in {*reads, *writes}:
            if key in self.writes:
                self.check(clock, self.writes[key], what, "uses what", "is still writing")
        for key in writes:
            for other in self.reads.get(key, {}).items():
                self.check(clock, other, what, "writes what", "is still reading")
        clock[stream] += 1
        for key in reads:
            self.reads.setdefault(key, {})[stream] = clock[stream]
        for key in writes:
            self.writes[key] = (stream, clock[stream])
            self.reads.pop(key, None)

    @staticmethod
    def check(clock, other, what, doing, done):
        """Raise GpuError unless the other's work is known to be done."""
        stream, tick = other
        if clock[stream] < tick:
            who = "the host" if stream == HOST else f"stream {stream}"
            raise GpuError(f"{what()} {doing} {who} {done}: no event between them")

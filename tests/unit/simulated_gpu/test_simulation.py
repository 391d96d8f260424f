"""The simulated GPU refuses what a GPU refuses, and does not do what a GPU does not do."""

import pytest
import torch
from support.gpusim import CUDA, GpuError, SimulatedGPU, move_to_gpu, needs_gpusim

pytestmark = needs_gpusim


@pytest.fixture
def gpu():
    with SimulatedGPU() as entered:
        yield entered


def captured(step, stream=None):
    """A captured graph of a step."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream or torch.cuda.Stream()):
        graph.capture_begin()
        try:
            step()
        finally:
            graph.capture_end()
    return graph


def test_numbers_are_the_hosts_and_tied_weights_stay_tied(gpu):
    head, embedding = torch.nn.Linear(4, 5, bias=False), torch.nn.Embedding(5, 4)
    head.weight = embedding.weight
    model = move_to_gpu(torch.nn.ModuleDict({"embedding": embedding, "head": head}))
    assert model["head"].weight is model["embedding"].weight and model["head"].weight.device == CUDA
    found = head(embedding(torch.tensor([1, 3], device=CUDA)))
    weights = head.weight.detach().cpu()
    assert found.device == CUDA and torch.equal(found.detach().cpu(), weights[[1, 3]] @ weights.T)


def test_host_and_device_do_not_mix(gpu):
    with pytest.raises(GpuError, match="tensors of host"):
        torch.ones(2, device=CUDA) + torch.ones(2)
    assert (torch.ones(2, device=CUDA) + torch.tensor(1.0)).tolist() == [2.0, 2.0]  # a number is a kernel's argument


@pytest.mark.parametrize(
    ("look", "why"),
    [
        (lambda x: x.sum().item(), "item"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "index by a mask"),
        (lambda x: x.cpu(), "copy to the host"),
        (lambda x: torch.tensor([1, 2], device=CUDA), "copy to the GPU from pageable memory"),
        (lambda x: x[torch.tensor([0])], "index of the host"),
        (lambda x: x.repeat_interleave(torch.ones(3, dtype=torch.long, device=CUDA)), "repeat_interleave"),
    ],
)
def test_a_wait_for_the_device_is_counted_and_none_is_in_a_graph(gpu, look, why):
    x = torch.tensor([1.0, 0.0, 2.0], device=CUDA)
    gpu.waits.clear()
    look(x)
    assert [found for _, found in gpu.waits.elements()] == [why]
    with pytest.raises(GpuError, match="while a graph is captured"):
        captured(lambda: look(x))


def test_copies_from_pinned_memory_do_not_wait_and_must_be_done_before_the_host_writes_again(gpu):
    pinned = torch.arange(3).pin_memory()
    moved = pinned.to(CUDA, non_blocking=True)
    back = moved.to("cpu", non_blocking=True)
    assert not gpu.waits
    with pytest.raises(GpuError, match="still writing"):
        back.sum()
    with pytest.raises(GpuError, match="still reading"):
        pinned.zero_()
    torch.cuda.synchronize()
    assert back.tolist() == pinned.tolist() == [0, 1, 2]


def test_a_capture_computes_nothing_and_a_replay_reads_what_is_there_then(gpu):
    x, total, shown = torch.ones(2, device=CUDA), torch.zeros(2, device=CUDA), []
    graph = captured(lambda: shown.append(total.add_(x) * 2))
    assert total.tolist() == [0.0, 0.0] and shown[0].tolist() != [0.0, 0.0]  # poison
    for number in (1.0, 2.0):
        graph.replay()
        assert total.tolist() == [number] * 2 and shown[0].tolist() == [2 * number] * 2
    x.fill_(5.0)
    graph.replay()
    assert total.tolist() == [7.0, 7.0]
    assert gpu.graphs[0].kernels == 2 and gpu.graphs[0].replays == 3


def test_a_replay_finds_freed_and_moved_memory(gpu):
    held = {"x": torch.ones(2, device=CUDA)}
    graph = captured(lambda: held["x"].add_(1))
    del held["x"]
    with pytest.raises(GpuError, match="freed"):
        graph.replay()


def test_two_streams_need_an_event_between_them(gpu):
    x, other = torch.ones(2, device=CUDA), torch.cuda.Stream()
    with torch.cuda.stream(other), pytest.raises(GpuError, match="uses what stream 0 is still writing"):
        x + 1
    other.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(other):
        x + 1
    with pytest.raises(GpuError, match="is still reading"):
        x.zero_()
    torch.cuda.current_stream().wait_stream(other)
    x.zero_()


def test_a_capture_is_on_one_stream_that_is_not_the_default_one(gpu):
    with pytest.raises(GpuError, match="default stream"):
        torch.cuda.CUDAGraph().capture_begin()

    def elsewhere():
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.zeros(2, device=CUDA)

    with pytest.raises(GpuError, match="another stream"):
        captured(elsewhere)

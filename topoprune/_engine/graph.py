"""One training step as a CUDA graph."""

import gc
from collections.abc import Callable

import torch
from torch import Tensor, nn

from topoprune.data import Data

Gradients = Callable[[Tensor, Tensor], Tensor]
"""(images, labels) -> the loss, after the gradients of the weights."""


def captured(step: Gradients, model: nn.Module, data: Data, batch: int) -> Gradients:
    """`step` as a CUDA graph, which leaves what it computes where it was while it was captured.

    The steps that warm it up change the running statistics alone, which are put back.
    """
    images, labels = data.train.images[:batch].clone(), data.train.labels[:batch].clone()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.train()
    gc.collect()  # what looked at the network, torch-pruning say, tied its gradients to another stream
    beside = torch.cuda.Stream()  # where PyTorch wants the warming up
    beside.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(beside):
            for _ in range(3):
                step(images, labels)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        model.zero_grad(set_to_none=True)  # so that the graph has gradients of its own
        with torch.cuda.graph(graph, stream=beside):
            loss = step(images, labels)
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)

    def replayed(batch: Tensor, answers: Tensor) -> Tensor:
        images.copy_(batch)
        labels.copy_(answers)
        graph.replay()
        return loss

    return replayed

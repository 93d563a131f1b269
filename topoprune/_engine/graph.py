"""One training step as a CUDA graph."""

import gc
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Step = Callable[[Any, Tensor], Tensor]
"""(inputs, labels) -> loss. A step sets the gradients of the network."""


def captured(step: Step, model: nn.Module, inputs: Any, labels: Tensor) -> Step:
    """Capture one training step as a CUDA graph. Gradients and loss live in fixed buffers.

    A step is some hundred short kernels: launching them one by one takes longer than running them. A step that waits
    for the device, or whose inputs are not one tensor, cannot be captured: it is returned as it is, with a warning.

    Args:
        step: uses `model`, which is in training mode.
        inputs, labels: a batch. All batches must have its size.

    Returns:
        A step that raises ValueError for a batch of another size.
    """
    try:
        if not isinstance(inputs, Tensor):
            raise RuntimeError(f"its inputs are a {type(inputs).__name__}, not one tensor")
        with torch.cuda.device(labels.device):  # need not be the current one
            return _captured(step, model, inputs.clone(), labels.clone())
    except RuntimeError as error:
        torch.cuda.synchronize(labels.device)
        warnings.warn(f"the network is trained without a CUDA graph, which is slower: {error}", stacklevel=3)
        return step


def _captured(step: Step, model: nn.Module, inputs: Tensor, labels: Tensor) -> Step:
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gc.collect()  # a discarded autograd graph, as of torch-pruning, ties the gradients to another stream
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            for _ in range(3):  # warm-up, as PyTorch asks
                step(inputs, labels)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        model.zero_grad(set_to_none=True)  # so that the graph allocates the gradients
        with torch.cuda.graph(graph, stream=stream):
            loss = step(inputs, labels)
    finally:
        with torch.no_grad():
            for buffer, value in buffers:  # the warm-up changed the running statistics
                buffer.copy_(value)

    def replay(batch: Tensor, batch_labels: Tensor) -> Tensor:
        if (batch.shape, batch_labels.shape) != (inputs.shape, labels.shape):
            found, first = ((tuple(x.shape), tuple(y.shape)) for x, y in ((batch, batch_labels), (inputs, labels)))
            raise ValueError(
                f"all batches must have the shapes of the first, {first}, got {found}: set drop_last=True in the loader"
            )
        inputs.copy_(batch)
        labels.copy_(batch_labels)
        graph.replay()
        return loss

    return replay

"""What makes a training step fast changes no result: precision, Muon, memory."""

import ctypes
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from topoprune._engine import convolutions, muon, precision
from topoprune.training import Recipe, accuracy, recalibrate, train

PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@pytest.mark.parametrize(
    ("machine", "avx512_bf16", "one_dnn", "expected"),
    [
        ("x86_64", True, True, torch.bfloat16),
        ("AMD64", False, True, torch.float32),  # AVX-512 alone: emulated
        ("x86_64", True, False, torch.float32),  # oneDNN was limited to AVX2
        ("aarch64", False, True, torch.bfloat16),
        ("aarch64", False, False, torch.float32),
    ],
)
def test_bfloat16_is_for_processors_that_have_it(machine, avx512_bf16, one_dnn, expected, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: one_dnn)
    assert precision.precision.__wrapped__("cpu") is expected
    assert precision.precision.__wrapped__("mps") is torch.float32


@pytest.mark.skipif(platform.machine() != "x86_64", reason="PyTorch names the instructions of x86 processors alone")
def test_the_precision_is_that_of_this_processor():
    one_dnn = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # fewer instructions, if ONEDNN_MAX_CPU_ISA says so
    able = torch.cpu.get_capabilities()["avx512_bf16"] and one_dnn
    assert precision.precision("cpu") is (torch.bfloat16 if able else torch.float32)


@pytest.mark.parametrize(
    ("dtype", "tiles", "largest"), [(torch.bfloat16, True, 4), (torch.bfloat16, False, 2), (torch.float32, True, 0)]
)
def test_small_images_are_products_where_bfloat16_is(dtype, tiles, largest, monkeypatch):
    monkeypatch.setattr(precision, "precision", lambda device: dtype)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    assert (precision.product_columns("cpu"), precision.product_columns("cuda")) == (largest, 0)
    layer = nn.Conv2d(128, 128, 3, padding=1)
    convolved = {}
    for side in (1, 2, 4, 8):
        with precision.autocast(torch.device("cpu")), torch.profiler.profile(acc_events=True) as profiled:
            layer(torch.zeros(1, 128, side, side))
        convolved[side] = any(event.name == "aten::convolution" for event in profiled.events())
    assert convolved == {side: side > largest for side in (1, 2, 4, 8)}


@PRECISIONS
def test_training_computes_in_the_precision_of_the_device(dtype, monkeypatch):
    monkeypatch.setattr(precision, "precision", lambda device: dtype)
    torch.manual_seed(0)
    seen, model = set(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model[0].register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    data = [(torch.randn(8, 3, 6, 6), torch.arange(8) % 4)]
    (epoch,) = train(model, data, Recipe(epochs=1, muon_rate=0.05), data)
    assert seen == {dtype}
    assert epoch.loss is not None
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_float64_network_stays_float64_where_small_images_are_products(monkeypatch):
    monkeypatch.setattr(precision, "precision", lambda device: torch.bfloat16)
    torch.manual_seed(0)
    layers = nn.Conv2d(128, 128, 3, padding=1), nn.BatchNorm2d(128), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    seen, model = set(), nn.Sequential(*layers).double()
    model[0].register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    data = [(torch.randn(4, 128, 2, 2).double(), torch.arange(4))]
    train(model, data, Recipe(epochs=1), data)
    recalibrate(model, data)
    assert 0 <= accuracy(model, data) <= 1
    assert seen == {torch.float64}
    with torch.no_grad():
        exact = model[0](data[0][0]).mean((0, 2, 3))
    torch.testing.assert_close(model[1].running_mean, exact)


def weight(*shape, layout=torch.channels_last) -> nn.Parameter:
    random = torch.Generator().manual_seed(0)
    made = nn.Parameter(torch.randn(*shape, generator=random).to(memory_format=layout))
    made.grad = torch.randn(*shape, generator=random)
    return made


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (3, 9, 1, 1), (5, 1, 3, 3), (64, 3, 3, 3)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@PRECISIONS
def test_muon_moves_a_convolution_by_the_nearest_orthogonal_matrix(shape, layout, dtype, monkeypatch):
    monkeypatch.setattr(muon, "precision", lambda device: dtype)
    moved, rate = weight(*shape, layout=layout), 0.1
    before = moved.detach().clone()
    muon.Muon([moved], lr=rate, weight_decay=0.5, momentum=0.0, nesterov=False).step()
    step = (before * (1 - rate * 0.5) - moved.detach()).flatten(1) / rate
    left, _, right = torch.linalg.svd(moved.grad.flatten(1), full_matrices=False)
    rows, columns = step.shape
    # Five Newton-Schulz steps bring the singular values near 1, not to it.
    alike = (step * (left @ right)).sum() / min(rows, columns) / max(1, rows / columns) ** 0.5
    assert 0.7 < alike < 1.2
    assert torch.linalg.svdvals(step).max() < 1.3 * max(1, rows / columns) ** 0.5


def test_muon_in_float32_computes_nothing_in_bfloat16(monkeypatch):
    monkeypatch.setattr(muon, "precision", lambda device: torch.float32)
    made = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            made.update(x.dtype for x in [result] if isinstance(x, torch.Tensor))
            return result

    moved = weight(6, 4, 3, 3)
    with Watch():
        muon.Muon([moved], lr=0.1).step()
    assert made == {torch.float32}


def test_muon_refuses_weights_that_it_would_only_copy():
    with pytest.raises(ValueError, match="contiguous or channels_last"):
        muon.Muon([nn.Parameter(torch.zeros(4, 4, 3, 3).transpose(2, 3))], lr=0.1)


def test_a_product_of_few_weights_does_not_pay():
    images, layer = torch.empty(1, 128, 4, 4), nn.Conv2d(128, 128, 3)
    assert convolutions.SmallAsProducts().pays(images, layer.weight, padding=(1, 1))
    assert not convolutions.SmallAsProducts().pays(images, nn.Conv2d(128, 64, 3).weight, padding=(1, 1))


FAULTS = """
import resource
import torch
from topoprune._engine.memory import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(16 * 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = faults()
keep_memory()
print(usual, min(faults() for _ in range(4)))  # the first ones enlarge the heap
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_kept_memory_is_not_asked_for_again():
    found = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    usual, kept = map(int, found.split())
    assert kept < usual / 10

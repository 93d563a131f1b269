"""The committed measurements."""

import json
from pathlib import Path

RESULTS = Path(__file__).parents[3] / "book" / "results"

BENCHMARK = RESULTS / "bench-fitness.json"
"""Written by `python -m topoprune.measure.fitness`."""

TRAINING = RESULTS / "bench-training.json"
"""Written by `python -m topoprune.measure.training`."""

EMULATED = RESULTS / "bench-training-avx2.json"
"""Some sections of the training benchmark with the processor limited to AVX2, where bfloat16 is emulated."""

TILES = RESULTS / "bench-training-amx.json"
"""Some sections on a processor with AMX, which multiplies tiles of bfloat16."""

GRAPHICS = RESULTS / "bench-training-cuda.json"
"""Some sections on a CUDA device."""

COMPENSATION = RESULTS / "bench-compensation.json"
"""Written by `python -m topoprune.measure.compensation`."""

ZOO = RESULTS / "zoo.json"
"""Written by `python -m topoprune.measure.zoo`."""


def benchmark(path: Path = BENCHMARK) -> dict:
    """A measurement of `topoprune.measure`; by default the committed one of the fitness."""
    return json.loads(path.read_text())

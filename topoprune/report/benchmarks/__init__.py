"""Tables of the benchmarks and of the torture test, from what `topoprune.measure` wrote."""

from topoprune.report.benchmarks.compensation import compensation_table
from topoprune.report.benchmarks.fitness import (
    bench_engines,
    bench_evaluations,
    bench_network,
    bench_numbers,
    bench_wide,
    search_growth,
)
from topoprune.report.benchmarks.measurements import (
    BENCHMARK,
    COMPENSATION,
    EMULATED,
    GRAPHICS,
    TILES,
    TRAINING,
    ZOO,
    benchmark,
)
from topoprune.report.benchmarks.reliability import (
    cluster,
    cluster_table,
    torture,
    torture_counts,
    torture_disk,
    torture_numbers,
    torture_phases,
)
from topoprune.report.benchmarks.training import (
    engine_batches,
    engine_convolutions,
    engine_growth,
    engine_loops,
    engine_operations,
    engine_peaks,
    engine_precisions,
    engine_processes,
    engine_removal,
    engine_trials,
)
from topoprune.report.benchmarks.training_numbers import cuda_numbers, engine_numbers, processor_numbers
from topoprune.report.benchmarks.zoo import zoo_numbers, zoo_table

__all__ = [
    "BENCHMARK",
    "COMPENSATION",
    "EMULATED",
    "GRAPHICS",
    "TILES",
    "TRAINING",
    "ZOO",
    "bench_engines",
    "bench_evaluations",
    "bench_network",
    "bench_numbers",
    "bench_wide",
    "benchmark",
    "cluster",
    "cluster_table",
    "compensation_table",
    "cuda_numbers",
    "engine_batches",
    "engine_convolutions",
    "engine_growth",
    "engine_loops",
    "engine_numbers",
    "engine_operations",
    "engine_peaks",
    "engine_precisions",
    "engine_processes",
    "engine_removal",
    "engine_trials",
    "processor_numbers",
    "search_growth",
    "torture",
    "torture_counts",
    "torture_disk",
    "torture_numbers",
    "torture_phases",
    "zoo_numbers",
    "zoo_table",
]

"""What a node tells of itself."""

from __future__ import annotations

import math

from jobs.runs.node_metrics import NodeSampler, gpu_figures


def test_a_sample_of_this_machine() -> None:
    host, figures = NodeSampler().sample()
    assert host
    assert figures.keys() >= {"cpu_percent", "memory_gib", "memory_percent", "disk_free_gib", "network_mib_per_second"}
    assert all(math.isfinite(value) and value >= 0 for value in figures.values())
    assert 0 < figures["memory_percent"] <= 100


def test_gpus_that_tell_not_everything() -> None:
    assert gpu_figures("0, 87, 1024, 310.5\n1, 3, [N/A], [N/A]\n") == {
        "gpu0_percent": 87.0,
        "gpu0_memory_mib": 1024.0,
        "gpu0_watts": 310.5,
        "gpu1_percent": 3.0,
    }

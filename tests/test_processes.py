"""Two processes equal one, however the weights are sharded."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import distributed
import pytest
import torch

from swsmix import _shards


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes made of all cases: one start, for it costs the most."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    folder = tmp_path_factory.mktemp("ranks")
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # nothing leaves this machine
    script = str(Path(distributed.__file__))
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(folder), str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        output = [process.communicate(timeout=180)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(output)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def skip_unless_run(case):
    if case[0] != "ddp" and not distributed.SHARDS_ON_CPUS:
        pytest.skip("this torch shards on GPUs only")


def furthest(results, others):
    return max(
        (a[name] - b[name]).abs().max().item()
        for a, b in zip(results, others, strict=True)
        for name in a | b
    )


@pytest.mark.parametrize("case", distributed.CASES, ids=" ".join)
def test_two_processes_equal_one(ranks, case):
    skip_unless_run(case)
    *_, update, groups = case
    first, second = (results[case] for results in ranks)
    assert furthest(first, distributed.by_hand(update, groups)) < 1e-6
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a | b)  # to the last bit


def test_strided_shards_are_shards():
    # FSDP2 over tensor parallelism makes them; torch 2.13 says no when asked is_shard().
    from torch.distributed.tensor.placement_types import Replicate, Shard, _StridedShard

    stand_in = torch.zeros(2)
    stand_in.placements = (_StridedShard(0, split_factor=2), Replicate(), Shard(0))
    stand_in.device_mesh = SimpleNamespace(get_group=lambda i: f"group {i}")
    assert _shards.shard_groups(stand_in) == ("group 0", "group 2")


@pytest.mark.parametrize("wrong", [{"tau": 2 * distributed.TAU}, {"moments": 2}])
def test_the_comparison_sees_a_prior_counted_twice(ranks, wrong):
    case = ("fsdp", "after", "gradient", "global")
    skip_unless_run(case)
    assert furthest(ranks[0][case], distributed.by_hand(*case[2:], **wrong)) > 1e-3

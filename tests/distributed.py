"""Training under a prior in two processes (DDP, FSDP2), each with its half of every batch.

Run by test_processes.py, once for each rank: `python distributed.py FOLDER RANK`. It leaves
FOLDER/RANK.pt, case -> (the whole weights, the mixtures), for comparison with `by_hand`.
"""

import sys
from itertools import product
from pathlib import Path

import torch
from torch import nn

from swsmix import MixturePrior, Schedule

STEPS, EM_EVERY, NUM_DATA, TAU, LR = 12, 4, 40, 2.0, 0.02
CASES = [
    *product(["ddp"], ["before", "after"], ["gradient", "proximal"], ["global"]),
    *product(["fsdp"], ["before", "after"], ["gradient", "proximal"], ["global", "tensor"]),
    ("fsdp", "after", "in the loss", "tensor"),
    ("fsdp", "after", "mode gradient", "tensor"),
    ("hsdp", "after", "gradient", "global"),  # replicas of shards: a mesh of 2 x 1
    ("fsdp+tp", "before", "gradient", "global"),  # two dimensions of shards
]
# FSDP2 on CPUs records events; torch 2.6 has none there.
SHARDS_ON_CPUS = hasattr(torch.cpu.Stream, "record_event")


def problem(seed=0):
    """A network of odd sizes; the last weight (1, 3) leaves nothing for the second shard."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1))
    net = net.double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(STEPS, NUM_DATA, 7, generator=generator, dtype=torch.float64)
    return net, x, torch.sin(x.sum(-1, keepdim=True))


def make_prior(net, groups, mode="em"):
    return MixturePrior(net, 2, groups=groups, mode=mode)


def loss_of(net, x, y):
    return 0.5 * (net(x) - y).square().mean()


def by_hand(update, groups, tau=TAU, moments=1):
    """One process, whole batches, no hooks: Adam, the penalty's gradient, Bayes' rule."""
    net, xs, ys = problem()
    prior = make_prior(net, groups, "gradient" if update == "mode gradient" else "em")
    optimizer = torch.optim.Adam([*net.parameters(), *prior.parameters()], lr=LR)
    strength = tau / NUM_DATA
    for step, (x, y) in enumerate(zip(xs, ys, strict=True), 1):
        optimizer.zero_grad()
        loss = loss_of(net, x, y)
        if update != "proximal":
            loss = loss + strength * prior.penalty()
        before = {n: p.detach().clone() for n, p in net.named_parameters()}
        loss.backward()
        optimizer.step()
        if update == "proximal":
            for group, mixture in prior.mixtures.items():
                for name, p in prior.parameters_of(group).items():
                    gamma, precision = mixture.responsibilities(before[name]), mixture.std**-2
                    second = optimizer.state[p]["exp_avg_sq"] / (1 - 0.999**step)
                    t = strength * LR / (second.sqrt() + 1e-8)
                    a, b = gamma @ precision, gamma @ (mixture.mean * precision)
                    p.data = (p.data + t * b) / (1 + t * a)
        if update != "mode gradient" and step % EM_EVERY == 0:
            for _ in range(moments):
                prior.em_step_()
    return result(net, prior)


def result(net, prior):
    whole = {n.removeprefix("module."): p.detach() for n, p in net.named_parameters()}
    whole = {n: p.full_tensor() if hasattr(p, "full_tensor") else p for n, p in whole.items()}
    mixtures = {
        f"{g.removeprefix('module.')} {n}": getattr(m, n).detach().clone()
        for g, m in prior.mixtures.items()
        for n in ("mixing", "mean", "std")
    }
    return whole, mixtures


def wrapped(net, how):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    if how == "ddp":
        return nn.parallel.DistributedDataParallel(net)
    mesh = init_device_mesh("cpu", (2,))
    if how == "hsdp":
        mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicas", "shards"))
    if how == "fsdp+tp":
        grid = init_device_mesh("cpu", (2, 1), mesh_dim_names=("shards", "tp"))
        mesh = grid["shards"]
        parallelize_module(net[0], grid["tp"], ColwiseParallel())
    for layer in (net[0], net[2]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def train(rank, how, built, update, groups):
    # A DDP model that is wrapped first has the first process's weights everywhere.
    net, xs, ys = problem()
    if (how, built) == ("ddp", "after") and rank == 1:
        net = problem(seed=1)[0]
    mode = "gradient" if update == "mode gradient" else "em"
    prior = make_prior(net, groups, mode) if built == "before" else None
    model = wrapped(net, how)
    if prior is None:
        prior = make_prior(model, groups, mode)
    optimizer = torch.optim.Adam([*model.parameters(), *prior.parameters()], lr=LR)
    if update != "in the loss":
        kind = "proximal" if update == "proximal" else "gradient"
        prior.attach(
            optimizer, num_data=NUM_DATA, schedule=Schedule(tau=TAU, em_every=EM_EVERY), update=kind
        )
    half = slice(rank * NUM_DATA // 2, (rank + 1) * NUM_DATA // 2)
    for step, (x, y) in enumerate(zip(xs, ys, strict=True), 1):
        optimizer.zero_grad()
        loss = loss_of(model, x[half], y[half])
        if update == "in the loss":
            loss = loss + TAU / NUM_DATA * prior.penalty()
        loss.backward()
        optimizer.step()
        if update == "in the loss" and step % EM_EVERY == 0:
            prior.em_step_()
    return result(model, prior)


def main(folder, rank):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    cases = CASES if SHARDS_ON_CPUS else [case for case in CASES if case[0] == "ddp"]
    results = {case: train(rank, *case) for case in cases}
    torch.save(results, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

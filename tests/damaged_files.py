"""Whole files of every kind, and one of them damaged."""

import json
import shutil

import damage
import torch
from torch import nn


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def train(folder, *, epochs, resume=False):
    from swsmix import MixturePrior, fit

    net = network()
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] > 0).long()
    prior = MixturePrior(net, 3, exclude="0.bias")
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    fit(
        net, nn.CrossEntropyLoss(), (x, y), optimizer=optimizer, epochs=epochs, prior=prior,
        run=folder, resume=resume, validation=(x, y), patience=4, progress=False,
    )  # fmt: skip
    return net


def make(seeds):
    """Write the whole files, each kind in a folder of its own."""
    from safetensors.torch import save_file

    from swsmix.bayes import fit_guide
    from swsmix.codec import encode

    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(24, 1, generator=generator) ** 6
    w = torch.randint(1, 4, (24, 36), generator=generator).float()
    w *= torch.rand(24, 36, generator=generator) < dense
    flat = w.reshape(-1).sort().values
    images = w.reshape(8, 12, 3, 3).contiguous()
    born = (torch.arange(40)[:, None] >= 2 * torch.arange(20)).float().T.contiguous()
    born *= torch.rand(born.shape, generator=generator) < 0.6
    born = born[born.ne(0).int().argmax(1).argsort(stable=True)]
    bias = torch.arange(9).float() / 8
    states = [
        {"a.weight": w, "a.bias": bias, "b.weight": w.clone(), "n": torch.tensor(3)},
        {"w": flat, "half": flat.half()[:50]}, {"w": images, "shared": w * 1}, {"w": born},
        {"w": torch.randn(8, 8, generator=generator), "m": torch.tensor([True, False] * 40)},
        {"one": torch.zeros(1000, 1000), "empty": torch.zeros(0, 5), "s": torch.tensor(1.5)},
    ]  # fmt: skip
    (seeds / "compressed").mkdir(parents=True)
    for i, state in enumerate(states):
        (seeds / "compressed" / f"{i}.sws").write_bytes(encode(state))
    (seeds / "torch").mkdir()
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.zeros(2, 4)).sum().backward()
    optimizer.step()
    trainer = {
        "state_dict": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3,
        "ema": {n: t * 0.9 for n, t in net.state_dict().items()}, "args": {"lr": 0.1, "name": "x"},
    }  # fmt: skip
    torch.save(trainer, seeds / "torch" / "trainer.pt")
    torch.save(net.state_dict(), seeds / "torch" / "state.pt")
    torch.save(trainer, seeds / "torch" / "old.pt", _use_new_zipfile_serialization=False)
    (seeds / "index").mkdir()
    names = list(net.state_dict())
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for file, own in zip(files, (names[:2], names[2:]), strict=True):
        save_file({n: net.state_dict()[n] for n in own}, seeds / "index" / file)
    places = dict(zip(names, [files[0]] * 2 + [files[1]] * 2, strict=True))
    index = {"metadata": {"total_size": 176}, "weight_map": places}
    (seeds / "index" / "model.safetensors.index.json").write_text(json.dumps(index))
    (seeds / "safetensors").mkdir()
    halves = {n: t.bfloat16() for n, t in net.state_dict().items()} | {"count": torch.arange(5)}
    save_file(halves, seeds / "safetensors" / "model.safetensors", {"format": "pt"})
    train(seeds / "run", epochs=2)
    shutil.rmtree(seeds / "run" / "final")
    (seeds / "run" / "config.toml").write_text('seed = 1\nname = "x"\n[more]\na = [1, 2]\n')
    import joints

    (seeds / "posterior").mkdir()
    *_, joint = joints.small()
    drawn = fit_guide(joint, epochs=20, batch_size=12, draws=20, seed=0, progress=False)
    drawn.save(seeds / "posterior" / "posterior.safetensors")


def damaged(kind, seeds, folder, rng):
    """Put the files of a kind into a folder, one of them damaged; returns what is to be read."""
    source = seeds / {"training": "run", "history": "run"}.get(kind, kind)
    if kind == "compressed" or kind == "torch":
        files = sorted(source.iterdir())
        file = damage.choose(rng, files)
        data, target = file.read_bytes(), folder / file.name
        if kind == "compressed":
            bad = damage.compressed(data, rng, damage.choose(rng, files).read_bytes())
        elif file.name == "old.pt":
            bad = damage.bytes_(data, rng)
        elif rng.integers(2):
            bad = damage.archive(data, rng, (source / "trainer.pt").read_bytes())
        else:
            bad = damage.torch_values(torch.load(file, weights_only=True), rng)
        target.write_bytes(bad)
        return target
    for file in source.iterdir():
        if file.is_dir():
            shutil.copytree(file, folder / file.name)
        else:
            shutil.copy(file, folder / file.name)
    if kind in ("run", "training", "history"):
        checkpoint = next(folder.glob("checkpoint-*"))
        part = {"training": "training.pt", "history": "history.safetensors"}.get(kind)
        others = ("network.safetensors", "prior.safetensors", "../config.toml", "training.pt")
        target = checkpoint / (part or damage.choose(rng, others))
    else:
        target = damage.choose(rng, sorted(folder.iterdir()))
    data = target.read_bytes()
    if target.suffix == ".safetensors":
        bad = damage.safetensors(data, rng)
    elif target.suffix == ".json":
        bad = damage.json_(data, rng)
    elif target.suffix == ".toml":
        bad = damage.bytes_(data, rng)
    elif rng.integers(4) == 0:
        bad = damage.archive(data, rng, data)
    else:
        bad = damage.torch_values(torch.load(target, weights_only=True), rng)
    target.write_bytes(bad)
    return folder if kind != "posterior" else target

"""Shipping a snapped network: bytes on disk, bytes in memory, and the time of an answer.

    python figures/shipping.py      about three minutes on one core; needs the extra onnx, and MNIST

Writes shipping.json and shipping.md. Two networks: LeNet-300-100 (266,610 numbers), trained for one
epoch on MNIST's training images, and a perceptron of 784-4096-4096-10 (20 million), untrained, for
its size alone. Both get 16 values per tensor by `quantize_state(state, 16)`. Each way to run them
has a process of its own with one thread, which reads the file, answers once, and then 200 times on
one case and 50 times on 256 (the wide network 33 and 8 times). Memory is what the process holds
after the first answer above what it held before it read the file, and the most that it held
meanwhile, above the same; time is the least, which other processes disturb the least.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
WAYS = {  # name -> file, constants folded when it is loaded
    "PyTorch, float32": ("net.safetensors", True),
    "ONNX Runtime, float32": ("float.onnx", True),
    "ONNX Runtime, codebooks": ("net.onnx", True),
    "ONNX Runtime, codebooks, looked up in each answer": ("net.onnx", False),
}
BATCHES = (1, 256)


def wide_net():
    from torch import nn

    return nn.Sequential(
        nn.Linear(784, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 10)
    )


def networks():
    """Name -> a network, in evaluation mode."""
    import torch

    from swsmix import fit
    from swsmix.problems.mnist import mnist, mnist_tensors
    from swsmix.problems.nets import lenet_300_100

    digits = mnist_tensors(mnist())
    net = lenet_300_100(generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    loss = torch.nn.functional.cross_entropy
    data = digits.x_train, digits.y_train
    fit(net, loss, data, optimizer=optimizer, epochs=1, batch_size=128, progress=False)
    torch.manual_seed(0)
    return {"LeNet-300-100": net.eval(), "784-4096-4096-10": wide_net().eval()}


def write_files(net, folder):
    """The network's files, and their bytes."""
    import torch
    from safetensors.torch import save_file

    from swsmix.compression import export_onnx, quantize_state, save_compressed
    from swsmix.compression.codebooks import snapped

    state = net.state_dict()
    state = snapped(state, quantize_state(state, 16))
    net.load_state_dict(state)
    save_file(state, folder / "net.safetensors")
    save_compressed(folder / "net.sws", state)
    export_onnx(folder / "net.onnx", net, torch.zeros(2, 784))
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.onnx.export(
        net, (torch.zeros(2, 784),), dynamo=True, dynamic_shapes=shapes, verbose=False
    )
    program.save(folder / "float.onnx", external_data=False)
    return {file.name: file.stat().st_size for file in sorted(folder.iterdir())}


def memory():
    """Bytes of memory that this process holds, and the most that it has held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = {line.split()[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    return 1024 * int(kilobytes["VmRSS:"]), 1024 * int(kilobytes["VmHWM:"])


def answer_by(file, folded, name):
    """A function from a batch to answers, from a file; and what a batch is made by."""
    import numpy as np

    if file.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        off = [] if folded else ["ConstantFolding"]

        def read():
            session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"], disabled_optimizers=off
            )
            (given,) = session.get_inputs()
            return lambda x: session.run(None, {given.name: x})[0]

        return read, np.random.default_rng(0)
    import torch
    from safetensors.torch import load_file

    from swsmix.problems.nets import lenet_300_100

    torch.set_num_threads(1)

    def read():
        net = lenet_300_100() if name == "LeNet-300-100" else wide_net()
        net.load_state_dict(load_file(file), assign=True)

        def answer(x):
            with torch.inference_mode():
                return net(torch.from_numpy(x)).numpy()

        return answer

    return read, np.random.default_rng(0)


def measure(file, folded, name):
    """Printed as JSON: bytes in memory, seconds per answer, and a few answers."""
    read, rng = answer_by(file, folded, name)
    batches = {n: rng.random((n, 784), dtype="float32") for n in BATCHES}
    before, _ = memory()
    answer = read()
    first = answer(batches[1])
    after, most = memory()
    found = {"memory": after - before, "peak": most - before, "seconds": {}}
    for n, x in batches.items():
        times = []
        for _ in range((200 if n == 1 else 50) // (1 if name == "LeNet-300-100" else 6)):
            start = time.perf_counter()
            answer(x)
            times.append(time.perf_counter() - start)
        found["seconds"][n] = min(times)
    print(json.dumps(found | {"first": first.reshape(-1).tolist()}))


def write_page(rows, path):
    lines = [
        "# Shipping a snapped network",
        "",
        "What is measured, and how, is in the docstring of `figures/shipping.py`. One core of a "
        "shared machine.",
    ]
    for name, row in rows.items():
        bytes_ = row["bytes"]
        lines += [
            "",
            f"## {name}",
            "",
            f"`swsmix compress`: {bytes_['net.sws']:,} bytes; safetensors, float32: "
            f"{bytes_['net.safetensors']:,}.",
            "",
            "| run by | file, bytes | memory, MB | at most, MB | 1 case, ms | 256 cases, ms |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for way, found in row["ways"].items():
            ms = [f"{1e3 * found['seconds'][str(n)]:.3g}" for n in BATCHES]
            mb = [f"{found[key] / 1e6:.1f}" for key in ("memory", "peak")]
            lines.append(f"| {way} | {bytes_[WAYS[way][0]]:,} | {' | '.join(mb + ms)} |")
        lines += ["", f"Largest difference of an answer: {row['difference']:.2g}."]
    path.write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure", nargs=3, metavar=("FILE", "FOLDED", "NAME"))
    given = parser.parse_args().measure
    if given:
        measure(Path(given[0]), given[1] == "True", given[2])
        return
    rows = {}
    for name, net in networks().items():
        with tempfile.TemporaryDirectory() as folder:
            row = {"bytes": write_files(net, Path(folder)), "ways": {}}
            for way, (file, folded) in WAYS.items():
                command = [sys.executable, __file__, "--measure", f"{folder}/{file}", str(folded)]
                done = subprocess.run([*command, name], capture_output=True, text=True, check=True)
                row["ways"][way] = json.loads(done.stdout)
        firsts = [found.pop("first") for found in row["ways"].values()]
        pairs = [abs(a - b) for first in firsts for a, b in zip(first, firsts[0], strict=True)]
        rows[name] = row | {"difference": max(pairs)}
        assert rows[name]["difference"] < 1e-4
    (HERE / "shipping.json").write_text(json.dumps(rows, indent=1) + "\n")
    write_page(rows, HERE / "shipping.md")


if __name__ == "__main__":
    main()

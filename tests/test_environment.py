"""The environment changes no number: defaults, modes, threads, processes, `python -O`, no HOME."""

import contextlib
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import main_paths as paths
import pytest
import torch
from loops import make, train
from torch import nn

from swsmix import MixturePrior, Schedule

TESTS = Path(__file__).parent
# Networks that no prior has trained are snapped here.
pytestmark = pytest.mark.filterwarnings("ignore:snapping took")


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return paths.digests(tmp_path_factory.mktemp("usual"))


@contextlib.contextmanager
def defaults(dtype, device, deterministic=False):
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    torch.use_deterministic_algorithms(deterministic)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


# `with torch.device("meta")` is the same mode of torch as that default.
SETTINGS = {
    "bfloat16, meta, deterministic": lambda: defaults(torch.bfloat16, "meta", True),
    "float64": lambda: defaults(torch.float64, None),
}


def adam_steps():
    """Whether torch's Adam does: 2.6 counts its steps on the default device, "meta" too."""
    weights = nn.Parameter(torch.zeros(1, device="cpu"))
    weights.grad = torch.ones_like(weights)
    try:
        torch.optim.Adam([weights]).step()
    except RuntimeError as error:
        return "meta" not in str(error)
    return True


@pytest.mark.parametrize("name", SETTINGS)
def test_the_users_defaults_change_no_number(name, usual, tmp_path):
    with SETTINGS[name]():
        if not adam_steps():
            pytest.skip("this torch's Adam cannot step where the default device is meta")
        found = paths.digests(tmp_path)
    assert found == usual


@pytest.mark.parametrize(
    ("mode", "parts"),
    [
        (lambda: torch.autocast("cpu", dtype=torch.bfloat16), ("prior_parts", "guide")),
        (torch.inference_mode, ()),
    ],
    ids=["autocast", "inference"],
)
def test_a_mode_of_torch_changes_no_number(mode, parts, tmp_path):
    names = ("mixture_parts", "snapped", "plotted", *parts)
    chosen = [getattr(paths, name) for name in names]
    usual = paths.digests(tmp_path / "usual", chosen)
    with mode():
        found = paths.digests(tmp_path / "in the mode", chosen)
    assert found == usual


def prior():
    return MixturePrior(paths.network(), 4)


def test_threads_of_the_user_do_not_disturb_each_other():
    wanted, found, before = paths.used(prior()), [], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        workers = [
            threading.Thread(target=lambda: found.append(paths.used(prior()))) for _ in range(4)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert found == [wanted] * 4


def _in_child(prior, queue):
    torch.set_num_threads(1)
    queue.put(paths.used(prior))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_goes_on_with_the_prior_of_its_parent():
    given = prior()
    given.penalty().backward()  # the tables are built, the compiled loops loaded
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(given, queue), daemon=True)
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert queue.get() == paths.used(given)


CHILD = """
import json, pickle, sys
from pathlib import Path
import numba.core.caching
numba.core.caching.CacheImpl._locator_classes = []  # no folder can be written
import main_paths as paths
folder = Path(sys.argv[1])
with open(folder / "prior.pickle", "rb") as file:
    prior = pickle.load(file)
parts = [getattr(paths, name) for name in sys.argv[2:]]
from swsmix.bayes import kernels
from swsmix.tables import backends
assert False, "python -O leaves this out"
found = paths.digests(folder, parts) | {"given": paths.used(prior)}
found["compiled"] = str(backends.numba_kernels() is not None)
print(json.dumps(found))
"""


def test_an_optimised_child_without_home_locale_or_stdin_finds_the_same(tmp_path):
    names = ("prior_parts", "mixture_parts", "attached", "trained", "compressed", "inspected")
    given = prior()
    (tmp_path / "prior.pickle").write_bytes(pickle.dumps(given))
    nowhere = os.path.join(os.devnull, "nowhere")
    odd = {
        "HOME": nowhere, "XDG_CACHE_HOME": nowhere, "LC_ALL": "C",
        "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Pacific/Kiritimati",
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-O", "-c", CHILD, str(tmp_path), *names],
        env=os.environ | odd, capture_output=True, text=True, check=False,
        preexec_fn=lambda: os.close(0),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    usual = paths.digests(tmp_path / "here", [getattr(paths, name) for name in names])
    wanted = usual | {"given": paths.used(given), "compiled": "True"}
    assert json.loads(done.stdout.splitlines()[-1]) == wanted


# -- the prior alone ---------------------------------------------------------------------------


def test_a_prior_made_in_inference_mode_trains_like_any_other():
    net, _ = make()
    with torch.inference_mode():
        prior = MixturePrior(net, 3)
        prior.penalty()
        prior.em_step_()
    prior.penalty().backward()
    prior.em_step_()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    prior.attach(optimizer, num_data=100, schedule=Schedule(em_every=1))
    train(net, optimizer, 3)
    assert net.weight.isfinite().all()


@pytest.fixture(params=[torch.bfloat16, torch.float16, torch.float64])
def default_dtype(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


def results(net, **options):
    prior = MixturePrior(net, 5, zero=True, zero_mixing=0.9, **options)
    prior.em_step_()
    mixture = prior.mixtures["all"]
    return [mixture.mixing, mixture.mean, mixture.std, prior.penalty().detach()]


@pytest.mark.parametrize("method", ["quantiles", "kmeans", "spread"])
def test_the_default_dtype_changes_no_number(method, default_dtype):
    torch.manual_seed(0)
    net = nn.Linear(64, 64, dtype=torch.float32)
    there = results(net, method=method)
    torch.set_default_dtype(torch.float32)
    for a, b in zip(there, results(net, method=method), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def test_the_default_device_changes_no_number():
    net, _ = make()
    here = results(net)
    torch.set_default_device("meta")
    try:
        there = results(net)
    finally:
        torch.set_default_device(None)
    for a, b in zip(there, here, strict=True):
        assert torch.equal(a, b)

"""Each broken field of a checkpoint is one error that names the file, the field and the mend."""

import json
import shutil

import pytest
import torch
from fits import trainer
from safetensors.torch import load_file, save_file

from swsmix import load_run

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with an optimiser, a scheduler, a trained noise and early stopping."""
    path = tmp_path_factory.mktemp("schema") / "run"
    *_, go = trainer("adam", patience=5)
    go(2, run=path)
    shutil.rmtree(path / "final")
    return path


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def resume(path, method="adam", **options):
    *_, go = trainer(method, patience=5, **options)
    return go(3, run=path, resume=True)


def put(state, field, value):
    """Set a field, or with `del` remove it, or with a function change it."""
    *parents, last = (int(key) if key.isdigit() else key for key in field.split("/"))
    for key in parents:
        state = state[key]
    if value == "del":
        del state[last]
    else:
        state[last] = value(state[last]) if callable(value) else value


def with_nan(tensor):
    tensor = tensor.clone()
    tensor.view(-1)[0] = NAN
    return tensor


TRAINING = [
    ("epoch", "del"), ("epoch", "1"), ("epoch", -1), ("epoch", True), ("epoch", 1.0),
    ("job", "del"), ("job", [1]), ("job/steps", "del"), ("job/steps", 2.5), ("job/steps", NAN),
    ("job/rng", "del"), ("job/rng", torch.zeros(3)), ("job/rng", torch.zeros(3, dtype=torch.uint8)),
    ("job/rng", "seed"), ("job/optimizer", 3), ("job/optimizer", "del"),
    ("job/optimizer/state", []), ("job/optimizer/param_groups", {}),
    ("job/optimizer/param_groups/0/lr", NAN), ("job/optimizer/param_groups/0/lr", "fast"),
    ("job/optimizer/state/0/exp_avg", with_nan),
    ("job/optimizer/state/0/exp_avg_sq", lambda t: t / 0),
    ("job/optimizer/state/0/exp_avg", lambda t: t[:1]), ("job/optimizer/state/0/step", with_nan),
    ("job/attachment", "del"), ("job/attachment/tick", "del"), ("job/attachment/tick", -3),
    ("job/attachment/entry", {"time": 1}), ("job/attachment/diagnosis", [1]),
    ("job/attachment/diagnosis", {"held": {"all": "much"}}),
    ("job/attachment/diagnosis", {"seen": {"all": {"w": torch.ones(3)}}}),
    ("job/attachment/diagnosis", {"seen": {"all": {"w": torch.full((6, 3), NAN)}}}),
    ("job/lr_scheduler", None), ("job/lr_scheduler", "del"),
    ("job/loss", "del"), ("job/loss", {}), ("job/loss/log_variance", with_nan),
    ("job/loader_rng", 3), ("job/cuda_rng", torch.zeros(2)), ("job/cuda_rng", {}),
    ("best", "del"), ("best", 7), ("best/value", "del"), ("best/value", NAN), ("best/value", "low"),
    ("best/since", "del"), ("best/since", -1), ("best/states", "del"), ("best/states", [1]),
    ("best/states/network", 3), ("best/states/network", "del"), ("best/states/loss", {}),
    ("best/states/network/0.weight", with_nan), ("best/states/network/0.weight", 3),
    ("best/states/network/0.weight", lambda t: t[:1]),
    ("best/states/prior/groups.[all].mixture.std", torch.neg),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(TRAINING)))
def test_a_broken_field_of_the_training_state(run, number):
    field, value = TRAINING[number]
    file = run / "checkpoint-000002" / "training.pt"
    state = torch.load(file, weights_only=True)
    put(state, field, value)
    torch.save(state, file)
    before = sorted(run.rglob("*"))
    with pytest.raises(ValueError, match=r"`(epoch|job|best)") as caught:
        resume(run)
    said = str(caught.value)
    assert str(file) in said and "\n" not in said
    named = field.replace("/", ".")
    parents = {named.rsplit(".", n)[0] for n in range(named.count(".") + 1)}
    assert any(f"`{name}`" in said for name in parents) or f"`{named}." in said, said
    assert "another folder" in said or "another process" in said or "cannot continue" in said
    assert sorted(run.rglob("*")) == before


HISTORY = [
    ("x", torch.ones(3)), ("mean/all", torch.tensor(1.0)), ("mean/all", torch.ones(9, 3)),
    ("mean/all", torch.ones(3)), ("mean/all", torch.ones(3, 2)), ("mean/all", with_nan),
    ("mean/all", "del"), ("std/all", torch.neg), ("std/all", lambda t: 0 * t), ("std/all", "del"),
    ("mixing/all", lambda t: t / 0), ("count/all", with_nan), ("claimed/all", torch.ones(3, 9)),
    ("bin_counts/all", with_nan), ("bin_edges/all", "del"), ("bin_edges/all", torch.ones(2, 257)),
    ("initial/all", with_nan), ("initial/all", torch.ones(2, 2)), ("initial/all", "del"),
    ("scalars/epoch", with_nan), ("scalars/epoch", lambda t: t.flip(0)), ("scalars/step", with_nan),
    ("scalars/seconds", lambda t: t + INF), ("scalars/tau", with_nan),
    ("scalars/objective", torch.ones(9)), ("scalars/objective", torch.ones(3, 1)),
    ("scalars/nll", torch.ones(3, dtype=torch.int32)), ("mean/all", torch.ones(3, 3) > 0),
    ("findings/all", torch.zeros(3)), ("findings/all", torch.zeros(3, 4)),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(HISTORY)))
def test_a_broken_series_of_the_history(run, number):
    field, value = HISTORY[number]
    file = run / "checkpoint-000002" / "history.safetensors"
    tensors = load_file(file)
    if value == "del":
        del tensors[field]
    else:
        tensors[field] = value(tensors[field]) if callable(value) else value
    save_file({k: t.contiguous() for k, t in tensors.items()}, file)
    with pytest.raises(ValueError, match="is damaged, or another kind of file") as caught:
        load_run(run)
    said = str(caught.value)
    assert str(file) in said and field in said and "another folder" in said


def test_a_mixture_with_fewer_records_than_the_scalars(run):
    file = run / "checkpoint-000002" / "history.safetensors"
    tensors = load_file(file)
    once = ("scalars/", "initial/")
    save_file({k: t if k.startswith(once) else t[:-1].clone() for k, t in tensors.items()}, file)
    with pytest.raises(ValueError, match="the series have different numbers of records"):
        load_run(run)


def test_measures_that_were_not_taken_are_nan_and_no_fault(run):
    file = run / "checkpoint-000002" / "history.safetensors"
    tensors = load_file(file)
    for name in ("validation_measure", "train_measure", "data_loss", "objective"):
        tensors[f"scalars/{name}"] *= NAN
    save_file(tensors, file)
    assert len(load_run(run).history) == 3


PRIOR = [("mean", with_nan), ("std", torch.neg), ("std", lambda t: t * INF),
         ("mixing", lambda t: 2 * t), ("mixing", torch.neg)]  # fmt: skip


@pytest.mark.parametrize(("name", "change"), PRIOR)
def test_a_mixture_that_is_none(run, name, change):
    file = run / "checkpoint-000002" / "prior.safetensors"
    tensors = load_file(file)
    key = f"groups.[all].mixture.{name}"
    save_file({**tensors, key: change(tensors[key])}, file, {"groups": '{"all": ["0.weight"]}'})
    with pytest.raises(ValueError, match="is damaged") as caught:
        load_run(run)
    assert f"{file} " in str(caught.value) and f"`{key}`" in str(caught.value)


@pytest.mark.parametrize("groups", [[1], {"all": 3}, {"all": ["0.weight", 3]}, "x"])
def test_names_of_groups_that_are_none(run, groups):
    file = run / "checkpoint-000002" / "prior.safetensors"
    save_file(load_file(file), file, {"groups": json.dumps(groups)})
    with pytest.raises(ValueError, match=r"prior.safetensors is damaged.*`groups"):
        load_run(run)


def test_a_history_of_another_checkpoint_is_said(run):
    file = run / "checkpoint-000002" / "training.pt"
    state = torch.load(file, weights_only=True)
    torch.save(state | {"epoch": 1}, file)
    with pytest.raises(ValueError, match=r"training.pt is of epoch 1, .* ends at \[2.0\]"):
        resume(run)


def test_a_damaged_outcome_says_that_the_checkpoint_beside_it_is_whole(made, tmp_path):
    run = shutil.copytree(made, tmp_path / "run")
    shutil.copytree(run / "checkpoint-000002", run / "final")
    (run / "final" / "history.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=f"delete {run}/final to use the checkpoint beside it"):
        load_run(run)
    assert load_run(run, resumable=True).epoch == 2


def test_no_message_says_how_to_run_code(run, monkeypatch):
    def load(*_, **__):
        raise RuntimeError("Please load with weights_only=False")

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(
        ValueError, match=r"training\.pt is damaged.*nothing in it was run"
    ) as caught:
        load_run(run)
    assert "weights_only" not in str(caught.value) and caught.value.__cause__ is None

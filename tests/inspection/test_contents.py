"""What is a network in a trainer's file: decided by structure, and what is left out is named."""

import cases
import pytest
import torch

from swsmix.inspection import checkpoints
from swsmix.inspection.contents import find_network


def trained():
    net = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.ReLU(), torch.nn.Linear(20, 5))
    return net


def stepped(net, optimizer=torch.optim.Adam, **settings):
    made = optimizer(net.parameters(), lr=1e-3, **settings)
    net(torch.randn(4, 30)).sum().backward()
    made.step()
    return made


NET = trained()
STATE = {name: t.clone() for name, t in NET.state_dict().items()}
ADAM = stepped(NET).state_dict()
SGD = stepped(NET, torch.optim.SGD, momentum=0.9).state_dict()
BY_NAME = {
    "state": {n: {"exp_avg": t + 1, "exp_avg_sq": t + 2} for n, t in STATE.items()},
    "param_groups": [{"params": list(STATE)}],
}
MOMENTS = [t + 1 for t in STATE.values()]


def shifted(state, by=1.0):
    return {name: t + by for name, t in state.items()}


LAYOUTS = {  # name -> (file, names that are left out)
    "DiT": ({"model": STATE, "ema": shifted(STATE), "opt": ADAM, "args": 3}, {"ema", "opt"}),
    "timm": (
        {"epoch": 3, "arch": "vit", "state_dict": STATE, "optimizer": SGD, "metric": 1.5,
         "state_dict_ema": shifted(STATE)},
        {"optimizer", "state_dict_ema"},
    ),
    "Lightning": (
        {"state_dict": STATE, "optimizer_states": [ADAM, SGD], "lr_schedulers": [{"last": 1}],
         "pytorch-lightning_version": "2"},
        {"optimizer_states.0", "optimizer_states.1"},
    ),
    "DeepSpeed": (
        {"module": STATE, "trainer": {"inner": {"base_optimizer_state": ADAM}}},
        {"trainer.inner.base_optimizer_state"},
    ),
    "FSDP": ({"model": STATE, "adam": BY_NAME}, {"adam"}),
    "flat groups": (
        {"module": STATE, "zero": [torch.ones(sum(t.numel() for t in STATE.values()))]},
        {"zero"},
    ),
    "moments by number": ({"net": STATE, "m": dict(enumerate(MOMENTS)), "v": MOMENTS}, {"m", "v"}),
    "moments by number and name": (
        {"net": STATE, "x": {i: {"first": t, "second": t + 1} for i, t in enumerate(MOMENTS)}},
        {"x"},
    ),
    "moments by name": (
        {"params": STATE, "mu": shifted(STATE), "nu": shifted(STATE)},
        {"mu", "nu"},
    ),
    "named moments": (
        {"anything": STATE, "solver": {"exp_avg": shifted(STATE), "exp_avg_sq": shifted(STATE)}},
        {"solver.exp_avg", "solver.exp_avg_sq"},
    ),
    "shadow": (
        {"model": STATE, "ema": {"decay": 0.9, "shadow_params": MOMENTS}},
        {"ema.shadow_params"},
    ),
    "parallel": (
        {"model": STATE, "averaged": {f"module.{n}": t for n, t in shifted(STATE).items()}},
        {"averaged"},
    ),
    "teacher": ({"teacher": shifted(STATE), "student": STATE}, {"teacher"}),
    "G and its average": ({"G_ema": shifted(STATE), "G": STATE}, {"G_ema"}),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reader", [checkpoints.read, checkpoints.read_network])
def test_a_trainers_file_gives_its_network_once_and_names_the_rest(layout, reader, tmp_path):
    saved, left_out = LAYOUTS[layout]
    torch.save(saved, tmp_path / "a.pt")
    found = reader(tmp_path / "a.pt")
    assert found.tensors.keys() == STATE.keys()
    assert all(torch.equal(found.tensors[name], t) for name, t in STATE.items())
    assert found.left_out.keys() == left_out


@pytest.mark.parametrize(
    "optimizer",
    ["Adam", "AdamW", "SGD", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "Rprop"],
)
def test_every_optimiser_of_torch_is_recognised_under_any_key(optimizer):
    settings = {"momentum": 0.9} if optimizer == "SGD" else {}
    state = stepped(trained(), getattr(torch.optim, optimizer), **settings).state_dict()
    for value in (state, {"state": state["state"]}, {"deep": [{"er": state}]}):
        tensors, left_out = find_network({"weights": STATE, "layers": value})
        assert tensors.keys() == STATE.keys() and left_out
    assert find_network(state) == ({}, {"the whole file": "an optimiser's state"})


def test_a_network_called_like_an_optimiser_is_a_network():
    tensors, left_out = find_network({"optimizer": STATE})
    assert tensors.keys() == STATE.keys() and not left_out
    tensors, _ = find_network({"optim_net": STATE, "critic": {"w": torch.ones(3, 3)}})
    assert len(tensors) == len(STATE) + 1


def test_networks_of_one_shape_are_kept_where_none_is_a_copy():
    for saved in ({"actor": STATE, "critic": STATE}, [STATE, STATE], {"G": STATE, "D": STATE}):
        tensors, left_out = find_network(saved)
        assert len(tensors) == 2 * len(STATE) and not left_out


def test_an_average_alone_is_the_network():
    tensors, left_out = find_network({"ema": STATE, "step": 3})
    assert tensors.keys() == STATE.keys() and not left_out


def test_an_average_in_a_flat_state_dict_is_left_out():
    flat = {f"model.{n}": t for n, t in STATE.items()}
    plain = {f"model_ema.{n.replace('.', '')}": t for n, t in STATE.items()}
    for copies in (plain, {f"ema_model.{n}": t for n, t in STATE.items()}):
        tensors, left_out = find_network(flat | copies)
        assert tensors.keys() == flat.keys() and len(left_out) == 1
    own = {f"ema_block.{n}": t[:1] for n, t in STATE.items()}  # other shapes: a part of the network
    assert find_network(flat | own)[0].keys() == (flat | own).keys()


def test_flat_moments_are_left_out():
    flat = STATE | {
        f"state.{i}.{m}": MOMENTS[i] for i in range(4) for m in ("exp_avg", "exp_avg_sq")
    }
    tensors, left_out = find_network(flat)
    assert tensors.keys() == STATE.keys() and left_out.keys() == {"*.exp_avg", "*.exp_avg_sq"}


def test_a_name_beside_and_inside_a_state_dict_is_two_tensors():
    outer, inner = torch.zeros(3, 3), torch.ones(3, 3)
    tensors, _ = find_network({"w": outer, "extra": {"w": inner}})
    assert torch.equal(tensors["w"], outer) and torch.equal(tensors["extra.w"], inner)


def test_an_optimiser_alone_is_no_network(tmp_path):
    torch.save(ADAM, tmp_path / "optimizer.pt")
    with pytest.raises(ValueError, match=r"holds no weights of a network.*optimiser's state"):
        checkpoints.read(tmp_path / "optimizer.pt")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_weights_and_their_scales_are_named_to_look_at_and_refused_to_write(dtype, tmp_path):
    state = cases.state()
    held = {"q.weight": torch.randn(9, 9).to(dtype), "q.weight_scale_inv": torch.ones(2, 2)}
    other = {"p.weight": torch.randn(3, 3), "p.weight_scale_inv": torch.ones(2, 2)}  # no scales
    torch.save(state | held | other, tmp_path / "a.pt")
    found = checkpoints.read(tmp_path / "a.pt")
    assert found.tensors.keys() == (state | other).keys()
    assert "dequantise" in found.left_out["q.weight"]
    assert found.left_out["q.weight_scale_inv"] == "the scales of q.weight"
    with pytest.raises(ValueError, match=r"without 1 tensors of its network, such as q\.weight"):
        checkpoints.read_network(tmp_path / "a.pt")


def test_tensors_without_values_are_named(tmp_path):
    torch.save({"a": torch.randn(3, 3), "b": torch.empty(3, 3, device="meta")}, tmp_path / "a.pt")
    assert "meta" in checkpoints.read(tmp_path / "a.pt").left_out["b"]
    with pytest.raises(ValueError, match="such as b: on the meta device"):
        checkpoints.read_network(tmp_path / "a.pt")


def test_contents_within_themselves_are_refused(tmp_path):
    loop = {"w": torch.ones(3, 3)}
    loop["self"] = loop
    torch.save(loop, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt"):
        checkpoints.read(tmp_path / "a.pt")

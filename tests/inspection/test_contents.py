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


def under(prefix, state):
    return {f"{prefix}{name}": t for name, t in state.items()}


def behind(state, *tails, prefix=""):
    return {f"{prefix}{name}{tail}": t + 1 for name, t in state.items() for tail in tails}


COPY = shifted(STATE)
FLAT = {  # what lies beside the network in one flat state_dict
    "FSDP": behind(STATE, ".exp_avg", ".step", prefix="optim.state."),
    "Adagrad by name": behind(STATE, ".sum", ".step", prefix="optim.state."),
    "Adagrad by number": {f"state.{i}.sum": t for i, t in enumerate(MOMENTS)},
    "slashes": behind(STATE, "/Adam", "/Adam_1"),
    "slashes and a prefix": behind(STATE, "/exp_avg", prefix="opt/"),
    "gradients": behind(STATE, ".grad"),
    "pairs": under("adam_m.", COPY) | under("adam_v.", COPY),
    "optax": under("mu.", COPY) | under("nu.", COPY),
    "buffers": {f"ema_{name.replace('.', '_')}": t for name, t in COPY.items()},
    "SWA": under("swa_model.module.", COPY) | {"swa_model.n_averaged": torch.tensor(3)},
    "a momentum encoder": under("momentum_model.", COPY),
}


@pytest.mark.parametrize("beside", FLAT)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_flat_file_gives_its_network_once(prefix, beside):
    network = under(prefix, STATE)
    if not prefix and beside in ("SWA", "a momentum encoder"):
        prefix, network = "net.", under("net.", STATE)
    tensors, left_out = find_network(network | FLAT[beside])
    assert tensors.keys() == network.keys() and left_out


@pytest.mark.parametrize(
    ("network", "copy"),
    [("student", "teacher"), ("critic", "target_critic"), ("q_net", "q_net_target"),
     ("online_encoder", "target_encoder"), ("encoder_q", "encoder_k"),
     ("base_encoder", "momentum_encoder"), ("visual_encoder", "visual_encoder_m")],
)  # fmt: skip
@pytest.mark.parametrize("parent", ["", "module."])
def test_a_second_network_in_a_flat_file_is_a_copy_if_its_name_says_so(parent, network, copy):
    own = under(f"{parent}{network}.", STATE)
    tensors, left_out = find_network(own | under(f"{parent}{copy}.", COPY))
    assert tensors.keys() == own.keys() and left_out.keys() == {f"{parent}{copy}.*"}
    other = {name: t[:1] for name, t in under(f"{parent}{copy}.", COPY).items()}
    assert find_network(own | other)[0].keys() == (own | other).keys()


@pytest.mark.parametrize(
    "names",
    [("a.q.weight", "a.k.weight", "a.v.weight", "a.m.weight"), ("q.weight", "k.weight", "v.weight"),
     ("source_embed.weight", "target_embed.weight"), ("mu.weight", "logvar.weight"),
     ("proj_q.weight", "proj_k.weight"), ("w.0", "w.1", "b.w.0"), ("weight", "sub.weight"),
     ("b.avg_conv.weight", "b.conv.weight"), ("left.weight", "right.weight")],
)  # fmt: skip
def test_layers_of_one_shape_are_kept(names):
    state = {name: torch.randn(8, 8) for name in names}
    tensors, left_out = find_network(state)
    assert tensors.keys() == state.keys() and not left_out


UNKNOWN = {  # an optimiser that nobody knows, beside {"model": STATE}
    "by name": {"q": {n: {"first": t, "second": t + 1} for n, t in STATE.items()}},
    "tuples by name": {"q": {f"module.{n}": (t, t + 1) for n, t in STATE.items()}},
    "8 bits": {"q": {i: {"state1": t, "qmap1": torch.zeros(256)} for i, t in enumerate(MOMENTS)}},
    "Shampoo": {"q": {"state": {i: {"step": 1, "p": torch.ones(7, 7)} for i in range(4)}}},
    "ZeRO": {"q": {"inner": ADAM, "fp32_groups": [torch.ones(9)], "stage": 2}},
    "replay buffer": {"buffer": {"obs": torch.randn(99, 30), "act": torch.randn(99, 2)}},
}


@pytest.mark.parametrize("beside", UNKNOWN)
def test_states_of_unknown_optimisers_and_data_are_left_out(beside):
    tensors, left_out = find_network({"model": STATE} | UNKNOWN[beside])
    assert tensors.keys() == STATE.keys() and left_out


def test_the_states_of_zero_alone_are_no_network(tmp_path):
    states = {"inner": ADAM, "fp32_groups": [torch.ones(9)], "stage": 2}
    torch.save({"optimizer_state_dict": states}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="holds no weights of a network"):
        checkpoints.read(tmp_path / "a.pt")
    torch.save({"module": {name: t[:0] for name, t in STATE.items()}}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"all 4 tensors are empty.*ZeRO"):
        checkpoints.read_network(tmp_path / "b.pt")


def test_an_actor_and_its_critic_are_two_networks():
    tensors, left_out = find_network({"policy": STATE, "value": COPY})
    assert len(tensors) == 2 * len(STATE) and not left_out


@pytest.mark.parametrize(
    "saved",
    [
        {1: NET[0].weight, "1": NET[2].weight},
        {"a.b": MOMENTS[0], "a": {"b": MOMENTS[2]}, "c": STATE},
    ],
)
def test_two_tensors_of_one_name_are_an_error(saved):
    with pytest.raises(ValueError, match="two tensors have the name"):
        find_network(saved)


PACKED = {
    "GPTQ": {"l.qweight": torch.ones(4, 8, dtype=torch.int32),
             "l.qzeros": torch.ones(1, 1, dtype=torch.int32), "l.scales": torch.ones(1, 8)},
    "bitsandbytes": {"l.weight": torch.ones(9, 9, dtype=torch.int8), "l.SCB": torch.ones(9)},
    "4 bits": {"l.weight": torch.ones(9, 1, dtype=torch.uint8), "l.weight.absmax": torch.ones(3)},
    "float8": {"l.weight": torch.ones(9, 9).to(torch.float8_e4m3fn), "l.scale": torch.ones(3, 3),
               "l.input_scale": torch.ones(1, 1)},
}  # fmt: skip


@pytest.mark.parametrize("kind", PACKED)
def test_packed_weights_and_their_scales_are_named_to_look_at_and_refused_to_write(kind, tmp_path):
    other = {"e.weight": torch.randn(9, 9), "e.scale": torch.ones(3, 3),
             "e.position_index": torch.ones(9, 9, dtype=torch.int32)}  # fmt: skip
    torch.save(PACKED[kind] | other, tmp_path / "a.pt")
    found = checkpoints.read(tmp_path / "a.pt")
    assert found.tensors.keys() == other.keys() and found.left_out.keys() == PACKED[kind].keys()
    if kind == "float8":  # kept bit for bit, so that they need not be understood
        assert checkpoints.read_network(tmp_path / "a.pt").exact == PACKED[kind].keys()
        return
    with pytest.raises(ValueError, match="need their scales; dequantise"):
        checkpoints.read_network(tmp_path / "a.pt")


def test_expanded_tensors_are_not_unfolded(tmp_path):
    wide = torch.ones(1).expand(10**5, 10**5)
    torch.save({"w": torch.randn(9, 9), "wide": wide}, tmp_path / "a.pt")
    found = checkpoints.read(tmp_path / "a.pt")
    assert found.tensors.keys() == {"w"} and "expanded from 1" in found.left_out["wide"]
    with pytest.raises(ValueError, match="such as wide"):
        checkpoints.read_network(tmp_path / "a.pt")


def test_a_name_beside_and_inside_a_state_dict_is_two_tensors():
    outer, inner = torch.zeros(3, 3), torch.ones(3, 3)
    tensors, _ = find_network({"w": outer, "extra": {"w": inner}})
    assert torch.equal(tensors["w"], outer) and torch.equal(tensors["extra.w"], inner)


def test_an_optimiser_alone_is_no_network(tmp_path):
    torch.save(ADAM, tmp_path / "optimizer.pt")
    with pytest.raises(ValueError, match=r"holds no weights of a network.*optimiser's state"):
        checkpoints.read(tmp_path / "optimizer.pt")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_weights_and_their_scales_are_named_to_look_at_and_exact_to_write(dtype, tmp_path):
    state = cases.state()
    held = {"q.weight": torch.randn(9, 9).to(dtype), "q.weight_scale_inv": torch.ones(2, 2)}
    other = {"p.weight": torch.randn(3, 3), "p.weight_scale_inv": torch.ones(2, 2)}  # no scales
    torch.save(state | held | other, tmp_path / "a.pt")
    found = checkpoints.read(tmp_path / "a.pt")
    assert found.tensors.keys() == (state | other).keys()
    assert "dequantise" in found.left_out["q.weight"]
    assert found.left_out["q.weight_scale_inv"] == "the scales of q.weight"
    whole = checkpoints.read_network(tmp_path / "a.pt")
    assert whole.tensors.keys() == (state | held | other).keys() and whole.exact == held.keys()


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


@pytest.mark.parametrize(
    "behind", [("exp_avg", "exp_avg_sq"), ("m", "v"), ("mask", "hessian"), ("momentum",)]
)
def test_moments_and_masks_behind_an_underscore_are_left_out(behind):
    state = {"w": torch.randn(40, 40), "b_v": torch.randn(40)}
    beside = {f"w_{tail}": torch.rand(40, 40) for tail in behind}
    tensors, left_out = find_network(state | beside)
    assert tensors.keys() == state.keys()
    assert left_out.keys() == {f"*_{tail}" for tail in behind}


def test_one_tensor_with_a_short_word_behind_a_weights_name_is_a_weight():
    state = {"w": torch.randn(4, 4), "w_v": torch.randn(4, 4)}
    tensors, left_out = find_network(state)
    assert tensors.keys() == state.keys() and not left_out

import warnings

import pytest
import torch
from commands import ended
from safetensors.torch import save_file
from torch import Tensor, nn

from swsmix.compression import fold_batch_norms_, quantize_state
from swsmix.compression.codebooks import snapped
from swsmix.compression.lost_rows import normalised


def net() -> nn.Sequential:
    """A convolution of which a fourth of the channels is a thousandth as large, and its norm."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(8, 32, 3, bias=False), nn.BatchNorm2d(32), nn.Flatten(), nn.Linear(32, 10)
    )
    with torch.no_grad():
        layers[0].weight[:8] *= 1e-3
        layers[1].running_var.copy_(72.0 * layers[0].weight.flatten(1).var(1))
    layers[1].running_var[:8].clamp_(min=2e-5)
    return layers.eval()


def outputs(layers: nn.Module, state: dict[str, Tensor]) -> Tensor:
    """On inputs from a seed."""
    layers.load_state_dict(state)
    with torch.no_grad():
        return layers(torch.randn(64, 8, 3, 3, generator=torch.Generator().manual_seed(1)))


def test_rows_that_a_batch_norm_scales_up_are_not_lost_in_silence():
    with pytest.warns(UserWarning, match=r"0\.weight \(8 of 32\).*fold_batch_norms_"):
        quantize_state(net().state_dict(), loss=0.02)


def test_the_remedy_of_the_warning_keeps_the_rows():
    layers = net()
    before = outputs(layers, layers.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = layers.state_dict()
        lost = outputs(layers, snapped(state, quantize_state(state, loss=0.02))) - before
    layers = net()
    fold_batch_norms_(layers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = layers.state_dict()
        kept = outputs(layers, snapped(state, quantize_state(state, loss=0.02))) - before
    assert kept.square().mean() < 0.5 * lost.square().mean()


@pytest.mark.parametrize("change", ["no norm", "dead channels", "constant rows"])
def test_rows_that_nothing_scales_up_are_set_to_one_value_without_a_word(change):
    state = net().state_dict()
    if change == "no norm":
        state = {n: t for n, t in state.items() if "running" not in n}
    elif change == "dead channels":
        state["1.running_var"][:8] = 1e-9
    else:
        state["0.weight"][:8] = 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_state(state, loss=0.02)


def test_a_norm_is_matched_by_its_number_of_channels():
    state = {
        "stem.weight": torch.ones(16, 8),
        "narrow.running_var": torch.ones(8),
        "wide.running_var": torch.ones(16),
        "late.running_var": torch.ones(8),
    }
    assert normalised(state) == {"stem.weight": "wide.running_var"}


def test_the_command_warns_too(tmp_path):
    save_file(net().state_dict(), tmp_path / "net.safetensors")
    code, said = ended("compress", tmp_path / "net.safetensors", "--loss", "0.02", "--quiet")
    assert code == 0
    assert "0.weight (8 of 32)" in said

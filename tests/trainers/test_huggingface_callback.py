"""The prior in the Hugging Face Trainer by a callback, against a loop by hand, to the last bit."""

import doctest
import json

import pytest
import torch
from torch import nn

from swsmix import MixturePrior, Schedule

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.frameworks
OPTIONS = {"num_data": 48, "schedule": Schedule(tau=0.1, em_every=4, em_rate=0.5)}
STEPS = 24


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))

    def forward(self, x, labels):
        return {"loss": nn.functional.cross_entropy(self.net(x), labels)}


def cases():
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(48, 5, generator=g), torch.randint(3, (48,), generator=g)
    return [{"x": row, "labels": label} for row, label in zip(x, y, strict=True)]


class InOrder(transformers.Trainer):
    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def train(folder, steps, *, callbacks=True, resume=None):
    from swsmix.trainers import huggingface

    net = Net()
    callback = huggingface.PriorCallback(MixturePrior(net, 3), **OPTIONS)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        use_cpu=True,
        report_to="none",
        save_steps=12,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = InOrder(
        net, arguments, train_dataset=cases(), callbacks=[callback] if callbacks else []
    )
    trainer.train(resume_from_checkpoint=resume)
    return net, callback


def by_hand():
    net, rows = Net(), cases()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.0, fused=True)
    prior = MixturePrior(net, 3)
    prior.attach(optimizer, **OPTIONS)
    for step in range(STEPS):
        batch = rows[8 * (step % 6) : 8 * (step % 6) + 8]
        optimizer.zero_grad()
        stacked = {k: torch.stack([row[k] for row in batch]) for k in batch[0]}
        net(**stacked)["loss"].backward()
        optimizer.step()
    return net, prior


def same(net, callback, other, prior):
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    mine, theirs = callback.prior.state_dict(), prior.state_dict()
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=0, equal_nan=True)
    assert callback.attachment.tick == STEPS


def test_the_callback_trains_as_the_loop_by_hand_and_so_does_a_resumed_training(tmp_path):
    same(*train(tmp_path / "whole", STEPS), *by_hand())
    train(tmp_path / "half", STEPS // 2)
    half = tmp_path / "half" / "checkpoint-12"
    json.loads((half / "trainer_state.json").read_text())
    same(*train(tmp_path / "other", STEPS, resume=str(half)), *by_hand())


def test_a_checkpoint_without_the_callback_is_refused(tmp_path):
    train(tmp_path, STEPS // 2, callbacks=False)
    with pytest.raises(ValueError, match=r"saved with a PriorCallback; got .* omit the callback"):
        train(tmp_path, STEPS, resume=str(tmp_path / "checkpoint-12"))


def test_the_example():
    from swsmix.trainers import huggingface

    assert doctest.testmod(huggingface).failed == 0

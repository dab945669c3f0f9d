"""The prior in the Hugging Face Trainer by a callback, against a loop by hand, to the last bit."""

import doctest
import json

import pytest
import torch
from callbacks import OPTIONS, STEPS, assert_same, by_hand, cases, network
from torch import nn

from swsmix import MixturePrior

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.frameworks


WEIGHTS = [f"net.{name}" for name, p in network().named_parameters() if p.ndim > 1]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x, labels):
        return {"loss": nn.functional.cross_entropy(self.net(x), labels)}


class InOrder(transformers.Trainer):
    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def train(folder, steps, *, callbacks=True, resume=None, second=False):
    from swsmix.trainers import huggingface

    net = Net()
    rows = [{"x": x, "labels": y} for x, y in zip(*cases(), strict=True)]
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
    used = [callback] if callbacks else []
    if second:
        extra = MixturePrior(net, 3, groups={"one": WEIGHTS[:1]})
        used.append(huggingface.PriorCallback(extra, num_data=48, tau=0.0))
    trainer = InOrder(net, arguments, train_dataset=rows, callbacks=used)
    trainer.train(resume_from_checkpoint=resume)
    return net, callback


def looped():
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.0, fused=True)
    return by_hand(net, optimizer, lambda x, y: net(x, y)["loss"], OPTIONS)


def test_the_callback_trains_as_the_loop_by_hand_and_so_does_a_resumed_training(tmp_path):
    assert_same(*train(tmp_path / "whole", STEPS), *looped())
    train(tmp_path / "half", STEPS // 2)
    half = tmp_path / "half" / "checkpoint-12"
    json.loads((half / "trainer_state.json").read_text())
    assert_same(*train(tmp_path / "other", STEPS, resume=str(half)), *looped())


def test_of_two_callbacks_each_resumes_its_own_prior(tmp_path):
    assert_same(*train(tmp_path / "whole", STEPS, second=True), *looped())
    train(tmp_path / "half", STEPS // 2, second=True)
    half = tmp_path / "half" / "checkpoint-12"
    assert_same(*train(tmp_path / "other", STEPS, resume=str(half), second=True), *looped())


def test_a_checkpoint_without_the_callback_is_refused(tmp_path):
    train(tmp_path, STEPS // 2, callbacks=False)
    with pytest.raises(ValueError, match=r"saved with a PriorCallback of .* got 0 of .* omit the"):
        train(tmp_path, STEPS, resume=str(tmp_path / "checkpoint-12"))


def test_the_example():
    from swsmix.trainers import huggingface

    assert doctest.testmod(huggingface).failed == 0

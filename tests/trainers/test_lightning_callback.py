"""The prior in Lightning by a callback, against a loop by hand, to the last bit."""

import doctest
import warnings

import pytest
import torch
from torch import nn

from swsmix import MixturePrior, Schedule

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Lightning says of itself
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")
    from swsmix.trainers import lightning as trainers

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
OPTIONS = {"num_data": 48, "schedule": Schedule(tau=0.1, em_every=4, em_rate=0.5)}
BY_ITSELF = {"num_data": 48, "em_every": 4}  # no schedule: the data decide when the prior enters
EPOCHS = 4


class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))

    def training_step(self, batch):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def batches():
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 5, generator=g), torch.randint(3, (8,), generator=g)) for _ in range(6)]


def fit(folder, epochs, options, resume=None):
    net = Net()
    callback = trainers.PriorCallback(MixturePrior(net, 3), **options)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
        default_root_dir=folder,
    )
    data = torch.utils.data.DataLoader(batches(), batch_size=None)
    trainer.fit(net, data, ckpt_path=resume, weights_only=True)
    return net, callback, trainer


def by_hand(options):
    net = Net()
    optimizer = net.configure_optimizers()
    prior = MixturePrior(net, 3)
    attachment = prior.attach(optimizer, **options)
    for _ in range(EPOCHS):
        for batch in batches():
            optimizer.zero_grad()
            net.training_step(batch).backward()
            optimizer.step()
    return net, prior, attachment


def same(net, callback, other, prior, attachment):
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    mine, theirs = callback.prior.state_dict(), prior.state_dict()
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=0, equal_nan=True)
    assert callback.attachment.tau == attachment.tau
    assert callback.attachment.tick == EPOCHS * 6


@pytest.mark.parametrize("options", [OPTIONS, BY_ITSELF], ids=["scheduled", "by itself"])
def test_the_callback_trains_as_the_loop_by_hand(tmp_path, options):
    net, callback, _ = fit(tmp_path, EPOCHS, options)
    same(net, callback, *by_hand(options))


@pytest.mark.parametrize("options", [OPTIONS, BY_ITSELF], ids=["scheduled", "by itself"])
def test_a_resumed_training_is_one_that_was_never_interrupted(tmp_path, options):
    _, _, trainer = fit(tmp_path, 2, options)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    net, callback, _ = fit(tmp_path, EPOCHS, options, resume=tmp_path / "half.ckpt")
    same(net, callback, *by_hand(options))


def test_after_training_the_prior_is_out_of_the_optimiser(tmp_path):
    net, callback, trainer = fit(tmp_path, 1, OPTIONS)
    net.training_step(batches()[0]).backward()
    trainer.optimizers[0].step()
    assert callback.attachment.tick == 6


def test_the_example():
    assert doctest.testmod(trainers, extraglobs={"torch": torch}).failed == 0

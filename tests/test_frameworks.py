"""Two lines in anyone's training loop: each framework against a loop by hand."""

import copy

import pytest
import torch
from torch import nn

from swsmix import MixturePrior, Schedule

NUM_DATA, TAU, EM_EVERY, STEPS = 48, 2.0, 4, 12

frameworks = pytest.mark.frameworks


def quiet_lightning(test):
    """Without what Lightning says of itself."""
    for message in (
        "`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
        ".*does not have many workers",
    ):
        test = pytest.mark.filterwarnings(f"ignore:{message}")(test)
    return test


def problem():
    """A small conv net on random pictures, and one batch of them for each step."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    batches = [(torch.randn(8, 1, 6, 6).double(), torch.randint(3, (8,))) for _ in range(STEPS)]
    return net, batches


def by_hand(model, optimizer, losses, *, num_data=NUM_DATA, clip=None, of=None, tau=TAU):
    """The penalty in the loss, the EM step in the loop; what is clipped is the data's gradient.

    `losses` holds, for each step, functions whose values add up to the data loss. `of` is the
    module whose parameters have the prior, by default the model.
    """
    prior = MixturePrior(of or model, 3)
    for step, parts in enumerate(losses, 1):
        optimizer.zero_grad()
        for part in parts:
            part().backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        (tau / num_data * prior.penalty()).backward()
        optimizer.step()
        if step % EM_EVERY == 0:
            prior.em_step_()
    return prior


def loss_by_hand(net, batches, accumulate=1):
    """The losses of steps of `accumulate` batches."""
    return [
        [
            lambda x=x, y=y: nn.functional.cross_entropy(net(x), y) / accumulate
            for x, y in batches[i : i + accumulate]
        ]
        for i in range(0, len(batches), accumulate)
    ]


def same(net, prior, other, other_prior, **tolerance):
    tolerance = tolerance or {"rtol": 1e-7, "atol": 1e-9}
    pairs = zip(net.parameters(), other.parameters(), strict=True)
    mine, theirs = prior.mixtures["all"], other_prior.mixtures["all"]
    pairs = [*pairs, *((getattr(mine, n), getattr(theirs, n)) for n in ("mixing", "mean", "std"))]
    for a, b in pairs:
        torch.testing.assert_close(a, b, **tolerance)


def plain(model, net, batches, of=None, tau=TAU):
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    prior = MixturePrior(of or net, 3)
    attachment = prior.attach(
        optimizer,
        num_data=NUM_DATA,
        schedule=Schedule(tau=tau, em_every=EM_EVERY),
        update="gradient",
    )
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert attachment.tick == len(batches)
    return prior


def expected(accumulate=1, clip=None, tau=TAU):
    net, batches = problem()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = loss_by_hand(net, batches, accumulate)
    return net, by_hand(net, optimizer, losses, clip=clip, tau=tau)


def test_a_plain_loop_on_a_conv_net():
    net, batches = problem()
    same(net, plain(net, net, batches), *expected())


def test_a_tenth_more_tau_is_seen():
    net, batches = problem()
    prior = plain(net, net, batches, tau=1.1 * TAU)
    with pytest.raises(AssertionError):
        same(net, prior, *expected(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("on", ["the module", "the compiled module"])
def test_a_compiled_model(on):
    # Without inductor, whose C++ takes a minute to compile; the hooks do not see the backend.
    net, batches = problem()
    model = torch.compile(net, backend="aot_eager")
    prior = plain(model, net, batches, of=net if on == "the module" else model)
    same(net, prior, *expected())


# -- Lightning --------------------------------------------------------------------------------


def lit(net, update="gradient"):
    import lightning

    class Lit(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net
            self.prior = MixturePrior(net, 3)  # moves and is saved with the module

        def training_step(self, batch):
            x, y = batch
            return nn.functional.cross_entropy(self.net(x), y)

        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)
            self.attachment = self.prior.attach(
                optimizer,
                num_data=NUM_DATA,
                schedule=Schedule(tau=TAU, em_every=EM_EVERY),
                update=update,
            )
            return optimizer

    return Lit()


def run_lightning(module, batches, **options):
    import lightning

    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    # One batch is one item of this data set.
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))


@frameworks
@quiet_lightning
@pytest.mark.parametrize(("accumulate", "clip"), [(1, None), (2, 0.1)])
def test_lightning(accumulate, clip):
    net, batches = problem()
    module = lit(net)
    run_lightning(module, batches, accumulate_grad_batches=accumulate, gradient_clip_val=clip)
    assert module.attachment.tick == STEPS // accumulate
    same(net, module.prior, *expected(accumulate, clip))
    assert {k.split(".")[0] for k in module.state_dict()} == {"net", "prior"}


@frameworks
@quiet_lightning
def test_lightning_with_the_proximal_step_equals_a_plain_loop_with_it():
    net, batches = problem()
    module = lit(net, "proximal")
    run_lightning(module, batches)
    other, batches = problem()
    optimizer = torch.optim.Adam(other.parameters(), lr=0.01)
    prior = MixturePrior(other, 3)
    prior.attach(
        optimizer,
        num_data=NUM_DATA,
        schedule=Schedule(tau=TAU, em_every=EM_EVERY),
        update="proximal",
    )
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(other(x), y).backward()
        optimizer.step()
    same(net, module.prior, other, prior)


# -- Hugging Face -----------------------------------------------------------------------------


@frameworks
@pytest.mark.parametrize(("accumulate", "clip"), [(1, 0.0), (2, 0.05)])
def test_hugging_face_trainer(tmp_path, accumulate, clip):
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 11, "n_positions": 6}
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **none, **tokens)).double()
    other = copy.deepcopy(model)
    rows = torch.randint(11, (NUM_DATA, 6))
    labels = rows.clone()
    labels[:, 0] = -100  # never predicted, but the Trainer would count it in its mean
    data = [{"input_ids": r, "labels": t} for r, t in zip(rows, labels, strict=True)]
    batches = []  # as the Trainer draws them

    def collate(rows):
        batches.append({k: torch.stack([row[k] for row in rows]) for k in rows[0]})
        return dict(batches[-1])

    # eps: the gradient of a key's bias is zero but for rounding, which Adam would blow up.
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-5)
    prior = MixturePrior(model, 3)
    attachment = prior.attach(
        optimizer,
        num_data=NUM_DATA * 5,
        schedule=Schedule(tau=TAU, em_every=EM_EVERY),
        update="gradient",
    )
    steps = 12 // accumulate
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulate,
        max_grad_norm=clip,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    Trainer(
        model, arguments, train_dataset=data, data_collator=collate, optimizers=(optimizer, None)
    ).train()
    assert attachment.tick == steps

    losses = [
        [lambda b=b: other(**b).loss / accumulate for b in batches[i : i + accumulate]]
        for i in range(0, steps * accumulate, accumulate)
    ]
    optimizer = torch.optim.AdamW(other.parameters(), lr=0.01, eps=1e-5)
    clip = clip or None
    other_prior = by_hand(other, optimizer, losses, num_data=NUM_DATA * 5, clip=clip)
    # The model takes its loss in float32, and some Trainers sum it where others take means.
    same(model, prior, other, other_prior, rtol=1e-5, atol=1e-8)


@frameworks
@pytest.mark.parametrize("attach_to", ["the optimiser", "the prepared optimiser"])
def test_accelerate_with_accumulated_and_clipped_gradients(attach_to):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    # One state for the whole process: a Trainer before this test may have left its own there.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    net, batches = problem()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    prior = MixturePrior(net, 3)
    model, prepared = accelerator.prepare(net, optimizer)
    attachment = prior.attach(
        optimizer if attach_to == "the optimiser" else prepared,
        num_data=NUM_DATA,
        schedule=Schedule(tau=TAU, em_every=EM_EVERY),
        update="gradient",
    )
    for x, y in batches:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.cross_entropy(model(x), y))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
            prepared.step()
            prepared.zero_grad()
    assert attachment.tick == STEPS // 2
    same(net, prior, *expected(2, 0.1))

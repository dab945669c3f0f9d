"""The prior in trainers that own the loop: a callback each.

lightning    PriorCallback for `lightning.Trainer`
huggingface  PriorCallback for `transformers.Trainer`

Each attaches the prior when training begins, with the keyword arguments of `MixturePrior.attach`,
and keeps the mixtures and the clock in the trainer's own checkpoints. Import the module that you
need: each needs its framework, which swsmix does not install.
"""

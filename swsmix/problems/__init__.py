"""Data sets, networks, and the problems that `swsmix train` trains.

data         yearly sunspot numbers and shift detection
mnist        MNIST, from a folder or a mirror, with checksums
cifar10      CIFAR-10, the same way
downloads    a file from a mirror
nets         the papers' networks
resnets      ResNet-20 and wide residual networks
augmentation batches that are changed anew in each epoch
dense        a network trained before the prior comes, its batch norms folded
recipes      Problem, load_problem: data, network, loss and recipe of each problem
experiments  train: a problem, beside weight decay
reproduction the runner of `swsmix reproduce`: units of work, their results, signals
"""

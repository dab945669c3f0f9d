"""Training under the prior: `fit`, run folders, the history.

The modules:

    fitting     fit, a thin front over two trainers: records, checkpoints, early stopping
    trainer     the interface of the two
    batches     an optimiser over mini-batches, the prior attached to it
    rounds      full-batch rounds of L-BFGS or conjugate gradients
    entering    when the prior enters these rounds, where no schedule says it
    recording   what a record holds              history    all records, as plain data
    evaluation  means over data                  stopping   early stopping
    runs        the run folder                   loggers    TensorBoard
"""

"""Can one CPU thread make, in half an hour or so, base models that leave something to learn?

    workbench pretrain --out FOLDER                             # pretrain, measure, compare
    workbench pretrain --model arithmetic-400k --out FOLDER     # another of the models
    workbench pretrain --check --out FOLDER                     # compare a model that exists

Wanted: a model that answers most questions directly and some in a short worked format, whose
Pass@64 is far above its Pass@1, and to which nesting at the right is almost out of reach.

Answer for `arithmetic-1m` (its card has the counts): yes, in 35 minutes of a busy thread. Pass@1 is
39% on chains of two and 16% on chains of four operations (Pass@64 is 100% on both), 15% in words,
6% on precedence (Pass@64 80%), 0.3% on nesting (20%) and 0.1% on both at once (8%). 56% of its
answers to validation are direct; of the suite of chains of two 54% are worked. It learns the digit
facts from worked steps first and the habit of answering directly after that: studies/README.md
compares the ways that were tried. A first mixture without `Glimpses` left precedence and nesting at
0.0%.

The smaller Qwen2 and the Llama stand for other base models in a comparison. They read less.
"""

from dataclasses import replace

from workbench.problems.habit import Glimpses, Mixture
from workbench.training.pretrain import Architecture, Pretraining

worked = Mixture(
    products=0.09,
    parentheses=0.06,
    words=0.07,
    equations=0.04,
    direct=0.38,
    long_worked=0.30,
    wrong_steps=0.20,
)

arithmetic_1m = Pretraining(
    seed=0,
    tokens=3_840_000,
    rows=4,
    row_length=128,
    learning_rate=2e-3,
    warmup=0.02,
    weight_decay=0.01,
    gradient_norm=1.0,
    primer=20_000,
    mixture=worked,
    rare=Glimpses(rare=0.35, precedence=0.35, nesting=0.30, direct=0.50),
    rare_mixture=replace(worked, direct=0.65, long_worked=0.175),
    rare_tokens=2_304_000,
    rare_learning_rate=1.5e-3,
    architecture=Architecture(
        layers=4, width=128, heads=4, hidden=512, positions=512, initial_deviation=0.08
    ),
)

# The first model's loss on the first stream was within 0.05 of its end by half of it.
shorter = replace(arithmetic_1m, tokens=2_048_000, rare_tokens=1_024_000)

models = {
    "arithmetic-1m": arithmetic_1m,
    "arithmetic-400k": replace(
        shorter,
        architecture=Architecture(
            layers=3, width=96, heads=4, hidden=384, positions=512, initial_deviation=0.1
        ),
    ),
    "arithmetic-llama-1m": replace(
        shorter, architecture=replace(arithmetic_1m.architecture, family="llama")
    ),
}

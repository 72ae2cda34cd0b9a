"""What every attempt needs, loaded once by the process that attempts are forked from."""

import importlib

import torch

from workbench import Data, provenance
from workbench.models import locate
from workbench.problems import loaders
from workbench.training.policy import load_policy

for name in ("worker", "training.loop", "training.evaluation", "training.trainer", "search"):
    importlib.import_module(f"workbench.{name}")
importlib.import_module("analysis.report")
torch.set_num_threads(1)
load_policy(locate("arithmetic-1m"), torch.device("cpu"), "float32", 1.0, False)
loaders.load(Data("arithmetic", train=8))
provenance.code()
provenance.gpus()

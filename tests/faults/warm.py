"""What every attempt needs, loaded once by the process that attempts are forked from."""

import importlib

import torch

from workbench import Data, provenance
from workbench.models import locate
from workbench.problems import loaders
from workbench.tracking import set_defaults
from workbench.training.policy import load_policy

set_defaults()  # which MLflow reads as it is imported
for name in ("worker", "training.loop", "training.evaluation", "training.trainer", "search"):
    importlib.import_module(f"workbench.{name}")
for name in ("workbench.cli", "workbench.cli_search", "workbench.cli_report", "analysis.report"):
    importlib.import_module(name)
for name in ("analysis.search", "analysis.tracked", "mlflow.store.tracking.sqlalchemy_store"):
    importlib.import_module(name)
torch.set_num_threads(1)
load_policy(locate("arithmetic-1m"), torch.device("cpu"), "float32", 1.0, False)
loaders.load(Data("arithmetic", train=8))
provenance.code()
provenance.gpus()

"""What every attempt needs, loaded once by the process that attempts are forked from."""

import importlib

import torch

from workbench import Data, provenance
from workbench.models import locate
from workbench.problems import loaders
from workbench.tracking import set_defaults
from workbench.training.policy import load_policy

set_defaults()  # which MLflow reads as it is imported
for name in (
    *("workbench.worker", "workbench.training.loop", "workbench.training.evaluation"),
    *("workbench.training.opening", "workbench.search", "workbench.cli", "workbench.cli_search"),
    *("workbench.cli_report", "analysis.report", "analysis.search", "analysis.tracked"),
    *("matplotlib.backends.backend_pdf", "matplotlib.backends.backend_svg"),
    "mlflow.store.tracking.sqlalchemy_store",
):
    importlib.import_module(name)
torch.set_num_threads(1)
load_policy(locate("arithmetic-1m"), torch.device("cpu"), "float32", 1.0, False)
loaders.load(Data("arithmetic", train=8))
provenance.code()
provenance.gpus()

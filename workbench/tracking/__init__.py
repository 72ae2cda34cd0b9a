"""The mirror of run directories in MLflow; the only package that imports mlflow."""

from workbench.tracking.mirror import Mirror
from workbench.tracking.report import log_report
from workbench.tracking.store import (
    TRAINING_VIEW,
    ensure_store,
    experiments,
    forget_connections,
    is_remote,
    page_of,
    set_defaults,
    sqlite_path,
    state_of,
    store_uri,
)

__all__ = [
    "TRAINING_VIEW",
    "Mirror",
    "ensure_store",
    "experiments",
    "forget_connections",
    "is_remote",
    "log_report",
    "page_of",
    "set_defaults",
    "sqlite_path",
    "state_of",
    "store_uri",
]

"""The report of a study among its runs in MLflow: one run of its own, whose artifacts it is."""

from pathlib import Path

from workbench.schema import Tag
from workbench.study import Study
from workbench.tracking.store import is_there, prepare_mlflow, set_defaults, sqlite_path


def log_report(study: Study, folder: Path, uri: str) -> bool:
    """Puts the files of a report into the study's experiment, in place of those that were there.

    Returns:
        Whether there is an experiment to put them into.
    """
    path = sqlite_path(uri)
    if path is not None and not is_there(path):
        return False
    set_defaults()
    prepare_mlflow()
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(study.name)
    if experiment is None or experiment.lifecycle_stage == "deleted":
        return False
    wanted = f"tags.`{Tag.REPORT}` = '{study.name}'"
    found = client.search_runs([experiment.experiment_id], wanted, max_results=1)
    if found:
        run = found[0]
    else:
        tags = {Tag.STUDY: study.name, Tag.REPORT: study.name}
        run = client.create_run(experiment.experiment_id, None, tags, "report")
    client.log_artifacts(run.info.run_id, str(folder))
    client.set_terminated(run.info.run_id, "FINISHED")
    return True

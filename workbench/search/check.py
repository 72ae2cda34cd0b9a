"""What can be known to be wrong with a search before anything is trained."""

from pathlib import Path
from typing import Any

import optuna

from workbench import trials
from workbench.identity import nearest
from workbench.recipe import Objective, Recipe
from workbench.search.optuna_of import directions_of, sampler_of
from workbench.study import Search
from workbench.trials import Given, Trial
from workbench.validate import check_level, validate

TRIED = 4  # proposals that are looked at before anything is trained


def check(search: Search) -> None:
    """Raises ValueError or TypeError on what can be known to be wrong with a search."""
    study = optuna.create_study(directions=directions_of(search))
    for number in range(TRIED):
        study.sampler = sampler_of(search.sampler, number)
        asked = study.ask()
        _check_recipe(search, search.propose(asked), asked.params)
    for point in search.points:
        given = Given(point)
        _check_recipe(search, search.propose(given), point)
        for name in point:
            if name not in given.asked:
                raise ValueError(f"known point {point}: {nearest(name, given.asked)}")


def _check_recipe(search: Search, recipe: Any, params: dict[str, Any]) -> None:
    if not isinstance(recipe, Recipe):
        hint = "; write base.using(method)" if isinstance(recipe, Objective) else ""
        raise TypeError(f"propose returned {recipe!r}, not a Recipe{hint}")
    if search.propose(Given(params)) != recipe:
        raise ValueError(
            f"propose made two recipes from the same answers {params}; it may depend on nothing "
            "but what it asks of the trial"
        )
    validate(search.study_of("trial", recipe, (0,)))
    if search.within_run and search.within_run.metric.startswith("validation/"):
        check_level("WithinRun.metric", search.within_run.metric, "trial", recipe)
    trials.own_job(search, Trial(0, params, recipe, 0), 0, Path())  # names an unknown objective

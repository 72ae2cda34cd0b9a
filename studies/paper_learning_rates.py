"""Which learning rate does each arm of studies/paper.py learn best with, by validation accuracy?

    workbench run studies/paper_learning_rates.py       # every arm at every rate, one seed
    workbench report studies/paper_learning_rates.py    # the table that paper.py's RATES are from

The seed is none of those that are compared, and test suites have no say: each run answers one test
question, because every run of a study is measured, and nothing reads it. The two halves of
SFT->GRPO have the same rate here.
"""

from dataclasses import dataclass
from pathlib import Path

from analysis import LearningCurves, Runs
from analysis.output import Tabular
from analysis.sheet import Entry, Head, Sheet
from analysis.table import NOTHING
from workbench import Evaluation, Study, Validation, replace
from workbench.identity import load_module

paper = load_module(str(Path(__file__).with_name("paper.py")))

RATES = (2e-4, 5e-4, 1e-3, 2e-3)
SEED = 100
SCORE = "validation/pass_at_1"

base = replace(paper.base_of("arithmetic-1m"), validation=Validation(every=paper.STEPS, samples=16))
labels = {(arm, rate): f"{arm} at {rate:g}" for arm in paper.RATES for rate in RATES}
search = Study(
    "paper-learning-rates",
    {
        labels[arm, rate]: paper.arms_of(base, dict.fromkeys(paper.RATES, rate))[arm]
        for arm, rate in labels
    },
    [SEED],
    Evaluation(samples=1, suites=("chain",), problems=1),
)


@dataclass(frozen=True)
class Choice(Tabular):
    """Validation accuracy of every arm after its last step, in percent, a column a rate."""

    def sheet(self, runs: Runs) -> Sheet:
        history = runs.history.reindex(columns=["label", SCORE])  # no column where no run is done
        scores = history.groupby("label")[SCORE].last().mul(100).dropna().to_dict()
        heads = (Head("Arm", "arm", text=True), *(Head(f"{r:g}", f"rate_{r:g}") for r in RATES))
        rows = []
        for arm in paper.RATES:
            found = {
                rate: scores[labels[arm, rate]] for rate in RATES if labels[arm, rate] in scores
            }
            best = max(found.values(), default=None)
            cells = [
                Entry(f"{found[rate]:.1f}", found[rate], best=found[rate] == best)
                if rate in found
                else Entry(NOTHING)
                for rate in RATES
            ]
            rows.append((Entry(arm, arm), *cells))
        note = f"Validation Pass@1 after the last step, percent, seed {SEED}, 16 answers a problem."
        return Sheet(self.name, heads, tuple(rows), (note, *runs.notes))


choice = Choice("learning-rates", search)
curves = LearningCurves("learning-curves", search)

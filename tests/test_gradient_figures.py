"""Tables and figures of probes: intervals of known moments, pairs, crossings, refusals."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from analysis import BiasVariance, ErrorBySolveRate, Estimators, Reproduced, estimates, gradient
from analysis.gradient import crossing, difference
from analysis.load import Runs, Suites
from workbench import Data, Probe, Recipe, Study, upge
from workbench.cli import main
from workbench.durable import new_file
from workbench.identity import load_module
from workbench.moments import Moments, jackknife
from workbench.plan import jobs

PROBES = (Probe((upge.sft(), upge.grpo(), upge.rloo()), step=0), Probe((upge.grpo(),), step=2))
STUDY = Study("probed", [Recipe("arithmetic-1m", Data("arithmetic"), upge.grpo())], probes=PROBES)


def rows(method, low=-1.0, high=1.0, inner=1.0, variance=1.0, noise=0.0, rate=0.5):
    """Moments from all of four groups and without each, `noise` apart from one another."""
    shift = noise * np.array([0.0, 1.0, -1.0, 1.0, -1.0])
    return pd.DataFrame(
        {
            "label": "HPT",
            "seed": 0,
            "probe_seed": 0,
            "step": 0,
            "distance": 0,
            "mu": 0.0,
            "band_low": low,
            "band_high": high,
            "solve_rate": rate,
            "questions": 5,
            "method": method,
            "left_out": [-1, 0, 1, 2, 3],
            "inner": inner + shift,
            "square": 1.0,
            "truth_square": 1.0,
            "variance": variance,
            "within": variance,
        }
    )


def test_the_parts_of_the_scale_free_error_add_up():
    moments = Moments(*(np.array(x) for x in (0.6, 2.0, 1.5, 0.7)))
    assert moments.scaled_bias + moments.scaled_variance == pytest.approx(moments.scale_free_error)
    # No other scale gives less: the definition itself.
    scales = np.linspace(0, 2, 4001)
    errors = scales**2 * (2.0 + 0.7) - 2 * scales * 0.6 + 1.5
    assert errors.min() / 1.5 == pytest.approx(float(moments.scale_free_error), abs=1e-6)


def test_a_jackknife_of_means_is_the_t_interval_with_a_sixth_of_the_freedom():
    values = np.array([1.0, 2.0, 4.0, 9.0, 3.0] * 3)
    left_out = np.array([values.mean(), *(np.delete(values, i).mean() for i in range(15))])
    found = jackknife(lambda m: m.inner, Moments(left_out, left_out, left_out, left_out))
    half = 4.302653 * values.std(ddof=1) / 15**0.5  # t of 2 degrees of freedom
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.value == pytest.approx(half, rel=1e-5)


def test_estimates_have_the_formulas_values():
    found = estimates(rows("grpo", inner=0.5)).iloc[0]
    assert found["bias_squared"] == pytest.approx(1.0)
    assert found["cosine"] == pytest.approx(0.5)
    assert found["scale_free_error"] == pytest.approx(1 - 0.25 / 2)
    assert found["cosine_low"] == found["cosine_high"] == pytest.approx(0.5)


def test_differences_are_paired():
    both = pd.concat([rows("grpo", noise=0.1), rows("rloo", noise=0.1, inner=0.9)])
    alone = estimates(both)
    assert (alone["cosine_high"] - alone["cosine_low"]).min() > 0.1
    apart = difference(both, "grpo", "rloo", "cosine")
    assert float(apart.value) == pytest.approx(0.1)
    assert float(apart.high - apart.low) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("last", "where"), [(0.9, 0.5), (0.1, None)])
def test_the_crossing_is_where_the_errors_are_equal(last, where):
    bands = [
        rows("sft", 0.0, 0.4, inner=0.5, rate=0.25),
        rows("sft", 0.4, 1.0, inner=0.5, rate=0.75),
        rows("grpo", 0.0, 0.4, inner=0.1, rate=0.25),
        rows("grpo", 0.4, 1.0, inner=last, rate=0.75),
    ]
    found = crossing(pd.concat(bands), "sft", "grpo")
    if where is None:
        assert np.isnan(found.value)
    else:
        near = 0.25**0 - 0.5**2 / 2, 1 - 0.1**2 / 2, 1 - 0.9**2 / 2  # errors: sft, grpo, grpo
        below, above = near[0] - near[1], near[0] - near[2]
        assert found.value == pytest.approx(0.25 + 0.5 * below / (below - above))
        assert found.low == pytest.approx(found.value)  # no group differs from another


def test_the_crossing_has_an_interval_where_it_is_without_each_group():
    bands = [
        rows("sft", 0.0, 0.4, inner=0.5, rate=0.25),
        rows("sft", 0.4, 1.0, inner=0.5, rate=0.75),
        rows("grpo", 0.0, 0.4, inner=0.3, noise=0.005, rate=0.25),
        rows("grpo", 0.4, 1.0, inner=0.8, rate=0.75),
    ]
    found = crossing(pd.concat(bands), "sft", "grpo")
    assert 0.25 < found.low < found.value < found.high < 0.75
    bands[2] = rows("grpo", 0.0, 0.4, inner=0.3, noise=0.5, rate=0.25)
    assert np.isnan(crossing(pd.concat(bands), "sft", "grpo").low)


def test_a_second_seed_agrees_where_the_intervals_of_a_difference_say_so(monkeypatch):
    cases = {"sft": 0.0, "grpo": 0.15, "rloo": 0.3}  # how far a second seed's cosine is off
    first = [rows(method, inner=0.5, noise=0.008) for method in cases]
    second = [
        rows(method, inner=0.5 + apart, noise=0.008).assign(probe_seed=1)
        for method, apart in cases.items()
    ]
    half = float(estimates(first[0])["cosine_high"].iloc[0]) - 0.5
    assert 0.15 < half * 2**0.5 < 0.3
    monkeypatch.setattr(gradient, "probed", lambda _: pd.concat([*first, *second]))
    (row,) = Reproduced("again", STUDY).sheet(Runs(STUDY, Suites((), ()), (), (), None)).rows
    found = {
        head: entry.text for head, entry in zip(("probe", *gradient._COMPARED), row, strict=True)
    }
    assert found["probe"] == "Step 0, on policy, mu = 0"
    assert found["cosine"] == "2 of 3" and found["variance"] == "3 of 3"


PROBED_STUDY = """
from analysis import BiasVariance, ErrorBySolveRate, Estimators
from workbench import Data, Evaluation, Probe, Recipe, Study, upge

probe = Probe((upge.sft(), upge.grpo(), upge.rloo()), mu=(0.0, 0.1))
recipe = Recipe("arithmetic-1m", Data("arithmetic"), upge.grpo(), steps=2)
study = Study("probed", {"HPT": recipe}, probes=[probe], evaluation=Evaluation(suites=("chain",)))
table = Estimators("table", study)
atlas = BiasVariance("atlas", study)
gate = ErrorBySolveRate("gate", study, mu=(0.0, 0.1))
"""


def test_exported_probes_draw_the_same_report_elsewhere(tmp_path, capsys):
    path = tmp_path / "probed.py"
    path.write_text(PROBED_STUDY)
    (job,) = jobs(load_module(str(path)).study, tmp_path / "mlruns")
    job.run.create(job.recipe, job.seed)
    job.run.finish({"steps": 2})
    (probe,) = job.probes
    bands = [("sft", 0.0, 0.4, 0.5), ("sft", 0.4, 1.0, 0.5), ("grpo", 0.0, 0.4, 0.3)]
    bands += [("grpo", 0.4, 1.0, 0.8), ("sft", -1.0, 1.0, 0.5), ("grpo", -1.0, 1.0, 0.6)]
    each = [
        rows(method, low, high, inner, noise=0.005, rate=high / 2)
        for method, low, high, inner in bands
    ]
    one = pd.concat(each).drop(columns=["label", "seed", "probe_seed"])
    table = pa.Table.from_pandas(pd.concat([one, one.assign(mu=0.1)]), preserve_index=False)
    note = {"sketch_error": "0.01", "reference_sketch_error": "0.02"}
    with new_file(job.run.probe_path(probe)) as handle:
        parquet.write_table(table.replace_schema_metadata(note), handle)
    assert main(["report", str(path), "--root", str(tmp_path / "mlruns")]) == 0
    exported = ["export", str(path), "--root", str(tmp_path / "mlruns")]
    assert main([*exported, "--to", str(tmp_path / "kept")]) == 0
    elsewhere = ["report", str(path), "--root", str(tmp_path / "elsewhere")]
    assert main([*elsewhere, "--from", str(tmp_path / "kept")]) == 0
    capsys.readouterr()
    for name in ("table.md", "table.csv", "atlas.svg", "gate.svg"):
        here, there = (
            (tmp_path / root / "reports" / "probed" / name).read_bytes()
            for root in ("mlruns", "elsewhere")
        )
        assert here == there
    assert (
        b"off by 1.0%, those of the truth's sample by 2.0%"
        in (tmp_path / "elsewhere" / "reports" / "probed" / "table.md").read_bytes()
    )


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (Estimators("t", STUDY, step=1), "Estimators.step is 1"),
        (Estimators("t", STUDY, baseline="grop"), "did you mean grpo"),
        (Estimators("t", STUDY, mu=0.5), "Estimators.mu is 0.5"),
        (Estimators("t", STUDY, columns=["cosin"]), "did you mean cosine"),
        (BiasVariance("f", STUDY, methods=["hpt"]), "names method 'hpt'"),
        (ErrorBySolveRate("f", STUDY, methods=["sft"]), "two or more"),
        (Reproduced("t", STUDY), "Reproduced.probe_seed is 1"),
        (ErrorBySolveRate("f", STUDY, distance=3), "ErrorBySolveRate.distance is 3"),
        (ErrorBySolveRate("f", STUDY, mu=(0.0, 0.1)), "ErrorBySolveRate.mu is 0.1"),
        (Estimators("t", Study("none", STUDY.arms)), "has none"),
    ],
)
def test_outputs_of_probes_that_there_are_not_are_refused(output, says):
    with pytest.raises(ValueError, match=says):
        output.check()

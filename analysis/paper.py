"""Every table and figure of "Towards a Unified View of LLM Post-Training", declared for a study."""

from collections.abc import Mapping, Sequence

from analysis.exclusive import Exclusive
from analysis.figure import Figure, GateDecisions, LearningCurves, PassAtK
from analysis.grid import RolloutGrid
from analysis.methods import Components
from analysis.output import Output
from analysis.table import Table
from workbench.recipe import Objective
from workbench.study import Study

SMOOTH = 5
# The paper's ratio counts sequences, and so does LUFFY's share: one demonstration beside seven
# rollouts, whatever the policy can do.
OFFLINE, LUFFY_SHARE = "offline/sequences", 1 / 8

SOLVE_RATES = ("reward/solve_none", "reward/solve_some", "reward/solve_all")
RATIOS = (
    "ratio/raw_mean",
    "ratio/raw_max",
    "ratio/applied_mean",
    "ratio/effective_sample_size",
    "ratio/clip_fraction",
    "policy/kl_old",
)
GRADIENT = ("grad/variance", "grad/noise_scale", "grad/cosine_sft_rl", "grad/share_sft")
SPEED = ("time/step", "time/rollout", "time/update", "time/tokens_per_second")


def paper(
    study: Study,
    methods: Sequence[str],
    *,
    ours: str = "HPT",
    before: str = "SFT->GRPO",
    paradigms: Mapping[str, str] = {},
    gates: Mapping[str, str] = {},
    others: Sequence[Objective] = (),
) -> tuple[Output, ...]:
    """Tables 1, 2 and 4 to 6 and Figures 2 to 8, named `table-1` to `figure-8`.

    Table 3 is Table 2 of studies with other base models.

    Args:
        study: with all the arms.
        methods: labels of the main comparison, the untrained base among them.
        ours: the arm that the paper is about.
        before: the arm that Figures 3 and 4 compare it with.
        paradigms: the arms of Table 5, as `off_policy` takes them.
        gates: the arms of Table 6 and Figure 8, as `thresholds` takes them.
        others: methods beside the arms in Table 1.
    """
    trained = [each for each in methods if study.recipes[each].method is not None]
    found: list[Output] = [
        Table("table-2", study, arms=methods, reported="table2_qwen7b", title="Table 2: accuracy"),
        Components("table-1", study, arms=trained, methods=others, title="Table 1: methods"),
        Exclusive("table-4", study, ours, reported=True, title="Table 4: exclusive solves"),
        PassAtK("figure-2", study, arms=methods, title="Figure 2: Pass@k"),
        RolloutGrid(
            "figure-3", study, arms=(before, ours), title="Figure 3: training rollout accuracy"
        ),
        RolloutGrid(
            "figure-4",
            study,
            before,
            arms=(ours,),
            title=f"Figure 4: training rollout accuracy, {ours} minus {before}",
        ),
        LearningCurves("figure-5", study, arms=methods, title="Figure 5: validation accuracy"),
        Figure(
            "figure-6",
            study,
            y=OFFLINE,
            arms=(ours,),
            constants={"LUFFY": LUFFY_SHARE},
            smooth=SMOOTH,
            title="Figure 6: offline data ratio",
        ),
        Figure(
            "figure-7",
            study,
            y=("policy/entropy", "length/all"),
            arms=trained,
            smooth=SMOOTH,
            title="Figure 7: entropy and response length",
        ),
    ]
    if paradigms:
        found += off_policy(study, paradigms)
    if gates:
        found += thresholds(study, gates)
    return tuple(found)


def off_policy(study: Study, rows: Mapping[str, str]) -> tuple[Output, ...]:
    """Table 5; `rows` are its arms, each with the paper's row (`SFT/ON`, `OFF/ON`, `Mix/ON`)."""
    return (
        Table(
            "table-5",
            study,
            arms=tuple(rows),
            reported="table5_offpolicy",
            reported_rows=rows,
            title="Table 5: off-policy RL in place of SFT",
        ),
    )


def thresholds(study: Study, rows: Mapping[str, str]) -> tuple[Output, ...]:
    """Figure 8 and Table 6; `rows` are their arms, each with the paper's (`0.0` to `0.25`)."""
    return (
        Figure(
            "figure-8",
            study,
            y=("reward/mean", OFFLINE),
            arms=tuple(rows),
            smooth=SMOOTH,
            title="Figure 8: gate thresholds",
        ),
        Table(
            "table-6",
            study,
            arms=tuple(rows),
            reported="table6_gate",
            reported_rows=rows,
            title="Table 6: gate thresholds",
        ),
    )


def dynamics(study: Study, arms: Sequence[str] = ()) -> tuple[Output, ...]:
    """Training dynamics beyond the paper: solve rates, gate, ratios, gradients and speed."""
    return (
        Figure(
            "solve-rates",
            study,
            y=SOLVE_RATES,
            arms=arms,
            smooth=SMOOTH,
            title="Questions solved by none, some or all of their rollouts",
        ),
        GateDecisions("gate", study, arms=arms, title="What the gate decided, by level"),
        Figure(
            "ratios",
            study,
            y=RATIOS,
            arms=arms,
            smooth=SMOOTH,
            title="Importance ratios and clipping",
        ),
        Figure(
            "gradient",
            study,
            y=GRADIENT,
            arms=arms,
            smooth=SMOOTH,
            title="Noise of a step's gradient, and how its two parts lie",
        ),
        Figure("speed", study, y=SPEED, arms=arms, smooth=SMOOTH, title="Time of a step"),
    )

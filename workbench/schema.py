"""The names that writers and readers share: metrics, files, tags. Nothing else spells them.

Metric keys are `group/name`; MLflow makes a section of each group. `@` is refused by MLflow, so
Pass@k is `pass_at_k`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A metric of a training step: its key, what a figure's axis calls it, and its unit."""

    key: str
    label: str
    unit: str = ""


METRICS = {
    metric.key: metric
    for metric in (
        Metric("reward/mean", "Training reward"),
        Metric("reward/solve_none", "Questions solved by no rollout", "share"),
        Metric("reward/solve_some", "Questions solved by some rollouts", "share"),
        Metric("reward/solve_all", "Questions solved by all rollouts", "share"),
        Metric("loss/total", "Loss"),
        Metric("loss/rollouts", "Loss of the rollouts"),
        Metric("loss/demonstrations", "Loss of the demonstrations"),
        Metric("loss/auxiliary", "Auxiliary loss"),
        Metric("policy/entropy", "Token entropy", "nats"),
        Metric("policy/entropy_demonstrations", "Token entropy on active demonstrations", "nats"),
        Metric("policy/kl_old", "KL to the old policy", "nats/token"),
        Metric("policy/nll_demonstrations", "Loss of active demonstrations", "nats/token"),
        Metric("ratio/raw_mean", "Importance ratio"),
        Metric("ratio/raw_max", "Largest importance ratio"),
        Metric("ratio/applied_mean", "Applied weight on the likelihood gradient"),
        Metric("ratio/effective_sample_size", "Effective sample size", "share"),
        Metric("ratio/clip_fraction", "Masked tokens", "share"),
        Metric("ratio/engine_mismatch", "Engine against trainer log-probability", "nats/token"),
        Metric("ratio/engine_raw_mean", "Old policy over engine"),
        Metric("ratio/engine_raw_max", "Largest ratio of old policy over engine"),
        Metric("ratio/engine_applied_mean", "Applied correction for the engine"),
        Metric("ratio/engine_applied_max", "Largest applied correction for the engine"),
        Metric("ratio/engine_cut", "Tokens above the correction's cap", "share"),
        Metric("grad/variance", "Gradient variance", "trace"),
        Metric("grad/noise_scale", "Gradient noise scale", "questions"),
        Metric("grad/norm_sft", "Gradient norm of the demonstrations"),
        Metric("grad/norm_rl", "Gradient norm of the rollouts"),
        Metric("grad/cosine_sft_rl", "Cosine of SFT and RL gradients"),
        Metric("grad/share_sft", "SFT in the expected gradient", "share"),
        Metric("grad/square", "Squared length of the expected gradient"),
        Metric("grad/square_sft", "Squared length of the expected SFT gradient"),
        Metric("grad/square_rl", "Squared length of the expected RL gradient"),
        Metric("grad/inner_sft_rl", "Product of the expected SFT and RL gradients"),
        Metric("optim/gradient_norm", "Gradient norm"),
        Metric("optim/learning_rate", "Learning rate"),
        Metric("optim/skipped", "Skipped updates", "count"),
        Metric("optim/nonfinite", "Updates with a non-finite loss or gradient", "count"),
        Metric("optim/rolled_back", "Returns to the last validation's weights", "count"),
        Metric("length/all", "Response length", "tokens"),
        Metric("length/right", "Length of right responses", "tokens"),
        Metric("length/wrong", "Length of wrong responses", "tokens"),
        Metric("length/demonstrations", "Demonstration length", "tokens"),
        Metric("length/truncated", "Truncated responses", "share"),
        Metric("verdict/ungradable", "Answers that could not be graded", "share"),
        Metric("verdict/correct", "Correct answers", "count"),
        Metric("verdict/wrong", "Wrong answers", "count"),
        Metric("verdict/unparsable_answer", "Responses without a readable answer", "count"),
        Metric("verdict/unparsable_gold", "Responses to an unreadable gold", "count"),
        Metric("verdict/timeout", "Answers that took too long to grade", "count"),
        Metric("verdict/error", "Answers that grading failed on", "count"),
        Metric("offline/questions", "Offline data ratio", "share of questions"),
        Metric("offline/sequences", "Offline data ratio", "share of sequences"),
        Metric("offline/tokens", "Offline data ratio", "share of tokens"),
        Metric("offline/gradient", "Offline data ratio", "share of gradient norm"),
        Metric("offline/cut_demonstrations", "Demonstrations cut at the limit", "count"),
        Metric("gate/rollouts", "Mean weight of the rollout stream"),
        Metric("gate/demonstrations", "Mean weight of the demonstration stream"),
        Metric("gate/missing_demonstrations", "Gated questions without a demonstration", "count"),
        Metric("budget/sampled_tokens", "Sampled so far", "tokens"),
        Metric("budget/trained_tokens", "Trained on so far", "tokens"),
        Metric("time/tokens_per_second", "Throughput", "tokens/s"),
        Metric("time/rollout", "Rollouts", "s"),
        Metric("time/grade", "Waiting for verdicts", "s"),
        Metric("time/estimate", "Old policy", "s"),
        Metric("time/update", "Update", "s"),
        Metric("time/validation", "Validation", "s"),
        Metric("time/step", "Step", "s"),
        Metric("validation/pass_at_1", "Validation accuracy", "share"),
        Metric("validation/ungradable", "Validation answers that could not be graded", "share"),
        Metric("validation/length", "Validation length", "tokens"),
        Metric("validation/entropy", "Validation entropy", "nats"),
    )
}

# Validation accuracy by level is `validation/level_3`; the final evaluation's Pass@1 on a suite is
# `eval/<suite>/pass_at_1`; a Pass@k curve is the one metric `passk/<suite>` with step = k.
VALIDATION_LEVEL = "validation/level_{level}"
EVAL_PASS_AT_1 = "eval/{suite}/pass_at_1"
EVAL_LENGTH = "eval/{suite}/length"
PASS_AT_K = "passk/{suite}"
PROBE = "probe/{method}/{name}"  # at the step of the probe's checkpoint
AVERAGE = "avg"  # the in-distribution suites' mean, in place of a suite's name
AVERAGE_OOD = "avg_ood"

# Columns of an evaluation's table: how many of a problem's responses had each verdict but
# `correct`, which is a column too. `ungradable` is the sum of all but `wrong`.
OTHER_VERDICTS = ("wrong", "unparsable_answer", "unparsable_gold", "timeout", "error")

# Timings differ between two runs of one seed; everything else must not.
WALL_CLOCK = ("time/",)


class File:
    """Names inside a run directory."""

    SPEC = "spec.json"
    PROVENANCE = "provenance.json"
    DATA = "data.json"
    LOCK = "lock"
    METRICS = "metrics.jsonl"
    QUESTIONS = "questions.jsonl"
    CHECKPOINTS = "checkpoints"
    EVALUATIONS = "evaluations"
    PROBES = "probes"
    ROLLOUTS = "rollouts"
    LOG = "worker.log"
    FAILURE = "failure.json"
    RESULT = "result.json"
    DOING = "doing.txt"
    STOP = "stop.json"
    TRIALS = "trials.jsonl"
    # The same records as tables, beside them and in copies such as MLflow's artifacts of a run.
    HISTORY_TABLE = "history.parquet"
    QUESTIONS_TABLE = "questions.parquet"


class Failure:
    """Why an attempt at a run ended without a result: the kinds in `failure.json`."""

    ERROR = "error"  # of the code or of what it was given: the same again would fail again
    MEMORY = "memory"  # it did not fit
    DISK = "disk"  # there was no room to write
    KILLED = "killed"  # by a signal, for no reason that is known
    CORRUPT = "corrupt"  # a checkpoint that it needs was not what was written, and was removed
    STALLED = "stalled"  # it showed no progress and was ended for that
    PREEMPTED = "preempted"  # asked to stop by someone else, with its checkpoint saved
    INTERRUPTED = "interrupted"  # asked to stop by the user, with its checkpoint saved


class Tag:
    """MLflow tags, for programs; names are for people."""

    STUDY = "workbench.study"
    REPORT = "workbench.report"
    LABEL = "workbench.label"
    CELL = "workbench.cell"
    SEED = "workbench.seed"
    EVALUATION = "workbench.evaluation"
    OUTCOME = "workbench.outcome"
    DIRECTORY = "workbench.directory"
    COMMIT = "workbench.commit"
    DIRTY = "workbench.dirty"  # a hash of what differed from the commit; absent where nothing did
    DEVICES = "workbench.devices"
    PACKAGES = "workbench.packages"

"""What `workbench plan` says of memory and time on a GPU, with the reasoning."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from workbench import footprint
from workbench import host as machine
from workbench.devices import DEVICES, GIB, Device
from workbench.footprint import Answering, Line, Memory, Seconds
from workbench.plan import Job, steps_of
from workbench.problems.loaders import size_of
from workbench.recipe import Recipe
from workbench.resources import Resources
from workbench.study import Study

HOUR = 3600.0
PROCESSES = (2, 4, 8)  # as machines have GPUs


def describe(study: Study, jobs: Sequence[Job], on: str | None) -> list[str]:
    """Lines for people: the device that was named, or the GPU that is here; none without one."""
    device = DEVICES[on] if on is not None else footprint.device_here(study.resources)
    if device is None:
        return []
    trained = {j.label: j.recipe for j in jobs if j.recipe.method is not None}
    most = footprint.largest(trained, study.resources, device, tuple(study.probes))
    if most is None:
        return [f"no estimate for {study.name}: the shapes of its models are not known here"]
    label, memory = most
    return [
        *_memory_lines(label, memory, device, _advice(trained, study, device)),
        *_host_lines(trained, jobs, study.resources),
        *_time_lines(trained, jobs, study.resources, device),
        *_evaluation_lines(jobs, study.resources, device),
    ]


def _advice(trained: Mapping[str, Recipe], study: Study, device: Device) -> str:
    """The fewest GPUs that one model fits on together, where it does not fit as it is."""
    resources = study.resources
    for processes in PROCESSES:
        if processes > resources.processes and not resources.engine_apart:
            spread = replace(
                resources,
                gpus=max(processes, resources.gpus),
                processes=processes,
                tensor_parallel=1,
            )
            found = footprint.largest(trained, spread, device, tuple(study.probes))
            if found is not None and found[1].peak <= device.memory:
                return (
                    f"Resources(gpus={spread.gpus}, processes={processes}) would take "
                    f"{found[1].peak / GIB:.1f} GiB of each"
                )
    return "nor with processes=8: recompute, or less tokens, sequences or engine_cache"


def _memory_lines(label: str, memory: Memory, device: Device, advice: str) -> list[str]:
    verdict = "fits" if memory.peak <= device.memory else f"does not fit; {advice}"
    return [
        f"memory of each of the trainer's {device.name} ({device.memory / GIB:.0f} GiB), arm "
        f"{label}, which takes most; P = {memory.parameters:,}:",
        *_parts("always", memory.always),
        *_parts("in an update", memory.update),
        *_parts("in a rollout", memory.rollout),
        *_parts("in going back", memory.going_back),
        *_parts("instead, in an evaluation", memory.evaluation),
        *_parts("instead, in a probe", memory.probe),
        f"  at the peak {memory.peak / GIB:.1f} GiB: {verdict}",
    ]


def _parts(when: str, lines: Iterable[Line]) -> list[str]:
    return [f"  {when}: {ln.what} {ln.bytes / GIB:.1f} GiB = {ln.formula}" for ln in lines]


def _host_lines(
    trained: Mapping[str, Recipe], jobs: Sequence[Job], resources: Resources
) -> list[str]:
    host = machine.host(trained, resources, on_gpu=True)
    return [
        "of the machine:",
        *_parts("on its disk", machine.disk(jobs, resources)),
        *_parts("for each cell at a time", [host] if host else []),
    ]


def _time_lines(
    trained: Mapping[str, Recipe], jobs: Sequence[Job], resources: Resources, device: Device
) -> list[str]:
    timed: dict[str, Seconds] = {}
    for label, recipe in trained.items():
        shape = footprint.shape_of(recipe.base)
        if shape is not None:
            timed[label] = footprint.seconds(recipe, resources, shape, device)
    longest = max(timed, key=lambda label: timed[label].rollout + timed[label].update)
    left = [job for job in jobs if job.label in timed and not job.run.finished]
    hours = sum(steps_of(job.recipe) * _step(timed[job.label]) for job in left) / HOUR
    each = timed[longest]
    return [
        f"time of a step on it, arm {longest}, which takes longest, if every response is as long "
        "as may be:",
        f"  rollout {each.rollout:,.0f} s at {each.rollout_rate:,.0f} tokens/s, {each.together} "
        f"sequences together, at {footprint.DECODE_EFFICIENCY:.0%} of the bandwidth",
        f"  update {each.update:,.0f} s at {each.update_rate:,.0f} tokens/s, "
        f"{footprint.UPDATE_EFFICIENCY:.0%} of the peak arithmetic",
        f"  what is left to train takes {hours * resources.gpus:,.0f} GPU hours at most "
        "(both shares are assumed, not measured; validation not counted)",
    ]


def _evaluation_lines(jobs: Sequence[Job], resources: Resources, device: Device) -> list[str]:
    """The run whose evaluation takes longest, and all that is left; decoded as rollouts are."""
    left: dict[str, list[Answering]] = {}
    unknown: dict[str, None] = {}
    for job in jobs:
        shape = footprint.shape_of(job.recipe.base)
        for each in job.measurements:
            if shape is None or job.run.evaluation_path(each).exists():
                continue
            problems = size_of(job.recipe.data, each.suite)
            if problems is None:
                unknown[each.suite] = None
            else:
                found = footprint.answering(job.recipe, each, problems, resources, shape, device)
                left.setdefault(job.name, []).append(found)
    lines = [f"  evaluation on {suite} not counted: its table is not here" for suite in unknown]
    if left:
        seconds = {name: sum(each.seconds for each in found) for name, found in left.items()}
        longest = max(seconds, key=lambda name: seconds[name])
        answers = sum(each.answers for each in left[longest])
        tokens = sum(each.tokens for each in left[longest])
        lines += [
            f"  evaluation of {longest}, which takes longest: {answers:,} answers, {tokens:,} "
            f"tokens, {seconds[longest]:,.0f} s at {tokens / seconds[longest]:,.0f} tokens/s",
            "  what is left to evaluate takes "
            f"{sum(seconds.values()) / HOUR * resources.gpus:,.1f} GPU hours at most",
        ]
    return lines


def _step(seconds: Seconds) -> float:
    return seconds.rollout + seconds.update

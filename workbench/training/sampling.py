"""What a step asks and is answered: rollouts, their verdicts, and the validation split."""

from workbench.problems import Problem, Verdict
from workbench.rollout import Request
from workbench.training.answers import Answer, ask, verdicts
from workbench.training.data import end_id, prompt_ids
from workbench.training.evaluation import Count, count
from workbench.training.randomness import seed_of
from workbench.training.sequences import Sequence
from workbench.training.tally import Tally
from workbench.training.trainer import Trainer


def sample(trainer: Trainer, problems: list[Problem], step: int) -> list[list[Answer]]:
    """The rollouts of each question, already being graded; none where the method reads none."""
    if not trainer.method.samples_rollouts:
        return [[] for _ in problems]
    requests = [
        Request(
            prompt_of(trainer, problem),
            trainer.recipe.rollouts,
            seed_of(trainer.seed, "rollout", step, index),
        )
        for index, problem in enumerate(problems)
    ]
    return answered(trainer, problems, requests)


def answered(
    trainer: Trainer, problems: list[Problem], requests: list[Request]
) -> list[list[Answer]]:
    """Rollouts as requested, each of the problem in its place."""
    return ask(trainer.policy, trainer.engine, trainer.data, problems, requests, trainer.decoding)


def grade(
    trainer: Trainer,
    problems: list[Problem],
    rollouts: list[list[Answer]],
    demonstrations: bool | None = None,
) -> list[Sequence]:
    """All sequences of the step: graded rollouts, and demonstrations where the method uses them.

    `demonstrations` says whether they are taken, in place of the method. What the engine calls when
    it got further is called while verdicts are waited for, too.
    """
    demonstrated = trainer.method.needs_demonstrations if demonstrations is None else demonstrations
    policy, limit = trainer.policy, trainer.recipe.sampling.max_tokens
    said = iter(verdicts(trainer.engine, trainer.data, rollouts))
    end = end_id(policy.tokenizer, trainer.data.prompt, policy.end)
    found = []
    for question, (problem, answers) in enumerate(zip(problems, rollouts, strict=True)):
        prompt = prompt_of(trainer, problem)
        for answer in answers:
            found.append(
                Sequence(
                    problem,
                    question,
                    prompt,
                    answer.response.tokens,
                    answer.text,
                    next(said),
                    answer.response.finished,
                    engine_logprobs=answer.response.logprobs,
                )
            )
        if demonstrated and problem.demonstration is not None:
            tokens = (*policy.encode(problem.demonstration), end)
            found.append(
                Sequence(
                    problem,
                    question,
                    prompt,
                    tokens[:limit],
                    problem.demonstration,
                    Verdict.CORRECT,
                    finished=len(tokens) <= limit,
                    demonstration=True,
                )
            )
    return found


def prompt_of(trainer: Trainer, problem: Problem) -> tuple[int, ...]:
    """The token ids that a question is asked with."""
    return prompt_ids(trainer.policy.tokenizer, trainer.data.prompt, problem.question)


def validate(trainer: Trainer, tally: Tally) -> None:
    """Accuracy on the validation split, over all and by level, and what could not be graded."""
    plan = trainer.recipe.validation
    problems = trainer.data.validation[: plan.problems]
    counts: list[Count] = count(
        trainer.policy,
        trainer.engine,
        trainer.data,
        problems,
        plan.samples,
        trainer.decoding,
        seed_of(trainer.seed, "validation"),
    )
    for each in counts:
        tally.add("validation/pass_at_1", each.correct, each.samples)
        tally.add("validation/ungradable", each.ungradable, each.samples)
        tally.add("validation/length", each.tokens, each.samples)
        tally.add("validation/entropy", each.surprisal, each.surprising)
        if each.problem.level:
            key = f"validation/level_{each.problem.level}"
            tally.add(key, each.correct, each.samples)

r"""Published data sets as values: the paper's training set, its benchmarks, GSM8K and MATH.

Hub names, columns and commits as users of these data sets state them; the commits are the newest
that several of them pin; of the paper's training set none is known. Loading one needs the network
once, and GPQA an account that has agreed to its terms. None is shipped.
"""

from collections.abc import Iterable

from workbench.problems.corpus import Benchmark, Corpus, Rows
from workbench.problems.prompts import Prompt, qwen_math

LETTER = r"Give the letter of the right option."

GSM8K_AS_BOXED = ((r"<<.*?>>", ""), (r"\n#### (.*)\s*$", r"\nThe answer is \\boxed{\1}."))


def openr1_math_46k(prompt: Prompt = qwen_math(), **changes: object) -> Corpus:
    """The paper's training set with its benchmarks: 46k problems with answers of DeepSeek-R1.

    The prompt column holds a system message, which the paper's code drops, and the question.
    """
    rows = Rows(
        "Elliott/Openr1-Math-46k-8192",
        question="prompt",
        answer="reward_model.ground_truth",
        demonstration="target",
    )
    return _corpus("openr1-math-46k", rows, benchmarks(), prompt, changes)


def gsm8k(prompt: Prompt = qwen_math(), **changes: object) -> Corpus:
    """GSM8K (arXiv 2110.14168): its solutions are demonstrations, boxed as the prompt asks for."""
    return _corpus("gsm8k", _gsm8k("train"), (Benchmark("gsm8k", _gsm8k("test")),), prompt, changes)


def math(prompt: Prompt = qwen_math(), **changes: object) -> Corpus:
    """MATH's 7,500 training problems (arXiv 2103.03874) with their solutions, tested on MATH-500.

    MATH-500 is of MATH's test problems, none of which is in the training split.
    """
    subjects = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra")
    rows = Rows(
        "EleutherAI/hendrycks_math",
        question="problem",
        answer="solution",
        demonstration="solution",
        level="level",
        config=(*subjects, "number_theory", "prealgebra", "precalculus"),
        revision="21a5633873b6a120296cce3e2df9d5550074f4a3",
    )
    return _corpus("math", rows, (math500(),), prompt, changes)


# Problems of the benchmarks below by their hub names: a plan counts answers where no table is.
PROBLEMS = {
    "math-ai/aime24": 30,
    "math-ai/aime25": 30,
    "math-ai/amc23": 40,
    "HuggingFaceH4/MATH-500": 500,
    "math-ai/minervamath": 272,
    "math-ai/olympiadbench": 674,
    "allenai/ai2_arc": 1172,
    "Idavidrein/gpqa": 198,
}


def benchmarks() -> tuple[Benchmark, ...]:
    """The paper's eight: six in the training distribution, ARC-c and GPQA-Diamond outside of it."""
    inside = (aime24(), aime25(), amc23(), math500(), minerva(), olympiad())
    return (*inside, arc_challenge(), gpqa_diamond())


def aime24() -> Benchmark:
    """AIME 2024, 30 problems."""
    revision = "83a7f387baaa524a8bda0022eac0541582297103"
    rows = Rows("math-ai/aime24", answer="solution", split="test", revision=revision)
    return Benchmark("aime24", rows)


def aime25() -> Benchmark:
    """AIME 2025, 30 problems."""
    revision = "563bb8404243c5f09de6ec262f2db674fe5bce9b"
    return Benchmark("aime25", Rows("math-ai/aime25", split="test", revision=revision))


def amc23() -> Benchmark:
    """AMC 12 of 2023, 40 problems."""
    revision = "80815d37005feb82cd7f8fbc6901d5d3eff43057"
    rows = Rows("math-ai/amc23", question="question", split="test", revision=revision)
    return Benchmark("amc23", rows)


def math500() -> Benchmark:
    """MATH-500, with levels from 1 to 5."""
    revision = "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"
    rows = Rows("HuggingFaceH4/MATH-500", level="level", split="test", revision=revision)
    return Benchmark("math500", rows)


def minerva() -> Benchmark:
    """Minerva's undergraduate science problems, 272 of them."""
    revision = "ee46ddc498933b1977577953250ca5c66be64f96"
    rows = Rows("math-ai/minervamath", question="question", split="test", revision=revision)
    return Benchmark("minerva", rows)


def olympiad() -> Benchmark:
    """OlympiadBench, 674 problems of text with one final answer (arXiv 2402.14008)."""
    rows = Rows(
        "math-ai/olympiadbench",
        question="question",
        answer="final_answer",
        split="test",
        revision="4faaf1e6ec17d11a4218a9bf4c049ecaf954dd84",
    )
    return Benchmark("olympiad", rows)


def arc_challenge() -> Benchmark:
    """The challenge set of ARC, 1,172 questions with options (arXiv 1803.05457)."""
    rows = Rows(
        "allenai/ai2_arc",
        question="question",
        answer="answerKey",
        options=("choices.text",),
        labels="choices.label",
        instruction=LETTER,
        config="ARC-Challenge",
        split="test",
        revision="210d026faf9955653af8916fad021475a3f00453",
    )
    return Benchmark("arc_c", rows, out_of_distribution=True)


def gpqa_diamond() -> Benchmark:
    """GPQA-Diamond, 198 questions (arXiv 2311.12022), its options in an order of their own."""
    rows = Rows(
        "Idavidrein/gpqa",
        question="Question",
        answer="Correct Answer",
        options=("Correct Answer", *(f"Incorrect Answer {number}" for number in (1, 2, 3))),
        shuffled=True,
        instruction=LETTER,
        config="gpqa_diamond",
        revision="633f5ee89ab8ad4522a9f850766b73f62147ffdd",
    )
    return Benchmark("gpqa_diamond", rows, out_of_distribution=True)


def _gsm8k(split: str) -> Rows:
    return Rows(
        "openai/gsm8k",
        question="question",
        answer="answer",
        demonstration="answer" if split == "train" else None,
        config="main",
        split=split,
        revision="740312add88f781978c0658806c59bc2815b9866",
        edits=GSM8K_AS_BOXED if split == "train" else (),
    )


def _corpus(
    name: str, rows: Rows, suites: Iterable[Benchmark], prompt: Prompt, changes: dict[str, object]
) -> Corpus:
    fields = {"suites": tuple(suites), "prompt": prompt, **changes}
    return Corpus(name, rows, **fields)  # type: ignore[arg-type]

"""Answers graded a second by one process and by two, and golds that are known in other forms.

python benchmarks/verifier.py FOLDER    # of benchmark files, *.jsonl with `answer`

A process keeps what it has parsed, as in training: golds are met again, and answers too.
"""

import json
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path

from workbench.problems import Verdict, verify
from workbench.problems.isolation import Graders
from workbench.problems.verifier import MathMatch, choice

QUESTIONS = 250
FORMS = {
    "as it is": lambda gold: gold,
    "in dollars": lambda gold: f"${gold.strip('$')}$",
    "display style": lambda gold: re.sub(
        r"(?<!\\left)\((.*?)(?<!\\right)\)", r"\\left(\1\\right)", gold.replace("\\frac", "\\dfrac")
    ),
    "spread out": lambda gold: gold.replace("+", " + ").replace("=", " = ").replace(",", ", "),
    "full stop": lambda gold: f"{gold}.",
    "as an equation": lambda gold: f"w = {gold}",
}


def main(folder: Path) -> None:
    """Prints how many golds are known again in each form, then the rates."""
    golds = [
        str(json.loads(line)["answer"])
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    if len(golds) < QUESTIONS:
        raise SystemExit(
            f"{folder} has {len(golds)} golds in *.jsonl, and {QUESTIONS} questions are drawn; "
            "name a folder of benchmark files"
        )
    letters = [gold for gold in golds if choice(gold)]
    others = [gold for gold in golds if not choice(gold)]
    print(f"| form | {len(others):,} golds | {len(letters):,} letters |\n| --- | ---: | ---: |")
    for name, form in FORMS.items():
        known = [sum(_known(form(gold), gold) for gold in of) for of in (others, letters)]
        print(f"| {name} | {known[0]:,} | {known[1]:,} |")
    # As rollouts are: each question answered eight times, half of them right in some form.
    draw, forms = random.Random(0), list(FORMS.values())
    answers = []
    for gold in draw.sample(golds, QUESTIONS):
        for _ in range(8):
            said = gold if draw.random() < 0.5 else draw.choice(golds)
            answers.append((rf"so \boxed{{{draw.choice(forms)(said)}}}", gold))
    for processes in (1, 2):
        several = Graders(MathMatch(), processes)
        several([(r"\boxed{2}", "2")] * 16 * processes)  # they start
        for what in ("never seen before", "all seen before"):
            began = time.perf_counter()
            counts = Counter(verdict.value for verdict in several(answers))
            rate = len(answers) / (time.perf_counter() - began)
            print(f"{processes} processes, {what}: {rate:,.0f} answers a second, {dict(counts)}")
        several.close()


def _known(answer: str, gold: str) -> bool:
    return verify(rf"\boxed{{{answer}}}", gold) is Verdict.CORRECT


if __name__ == "__main__":
    main(Path(sys.argv[1]))

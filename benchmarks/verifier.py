"""Answers graded a second of one processor, and how often golds are known in other forms.

python benchmarks/verifier.py FOLDER    # of benchmark files, *.jsonl with `answer`

One process; parsed expressions are kept between answers, as they are in training.
"""

import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

from workbench.problems import verify

FORMS = {
    "as it is": lambda gold: gold,
    "in dollars": lambda gold: f"${gold.strip('$')}$",
    "display style": lambda gold: gold.replace("\\frac", "\\dfrac").replace("(", "\\left("),
    "spread out": lambda gold: gold.replace("+", " + ").replace("=", " = ").replace(",", ", "),
    "full stop": lambda gold: f"{gold}.",
    "as an equation": lambda gold: f"w = {gold}",
}


def main(folder: Path) -> None:
    """Prints a table of forms with the verdicts, then the rates."""
    golds = [
        str(json.loads(line)["answer"])
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    for name, form in FORMS.items():
        counts = Counter(verify(rf"\boxed{{{form(gold)}}}", gold).value for gold in golds)
        print(f"{name:14} {dict(counts.most_common())}")
    drawn = random.Random(0).choices(golds, k=2000)
    others = random.Random(1).choices(golds, k=2000)
    for name, answers in (("right answers", drawn), ("any answers", others)):
        began = time.process_time()
        for answer, gold in zip(answers, drawn, strict=True):
            verify(rf"so the answer is \boxed{{{answer}}}", gold)
        print(
            f"{name}: {len(drawn) / (time.process_time() - began):,.0f} a second of one processor"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))

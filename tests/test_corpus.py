"""Corpora: columns, golds, options, splits, joins and what is said when something is missing."""

import csv
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from workbench import Benchmark, Corpus, Data, Recipe, Rows, Study, doctor, replace, upge
from workbench.doctor import data_checks, study_checks
from workbench.identity import canonical, fingerprint, imports, restore
from workbench.problems import Text, Verdict, loaders, published, verify
from workbench.problems.contamination import overlaps
from workbench.problems.prompts import Chat, llama, qwen_math, r1
from workbench.problems.reading import gold_of, read
from workbench.studyfile import StudyFile
from workbench.validate import validate

SHARED = Path(__file__).parents[1] / "../shared/data"

ROWS = [
    {"problem": f"What is {n} plus {n}, and is that an even number or not?", "answer": 2 * n,
     "solution": f"{n}+{n}={2 * n}\n#### {2 * n}", "level": f"Level {n % 5 + 1}"}
    for n in range(12)
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with (tmp_path / "rows.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    return tmp_path


def corpus(rows: Rows, **changes: Any) -> Corpus:
    return Corpus(**{"name": "sums", "rows": rows, "validation": 3, "prompt": Text(), **changes})


# --- values ---------------------------------------------------------------------------------------


def test_a_corpus_is_a_value_that_comes_back_from_its_record() -> None:
    value = published.openr1_math_46k(r1(), train=10)
    again = restore(canonical(value), imports(value))
    assert (again, fingerprint(again)) == (value, fingerprint(value))
    assert eval(str(value), vars(published) | vars(sys.modules["workbench.problems"])) == value


def test_the_small_world_has_the_identity_that_it_always_had() -> None:
    assert canonical(Data("arithmetic", train=600)) == {
        "Data": {"name": "arithmetic", "train": 600, "seed": 0}
    }


MISTAKES = {
    "no slot": (lambda: Text("Solve this."), r"slot \{question\} exactly once"),
    "two slots": (lambda: Chat("{question} {question}"), "exactly once"),
    "no regular expression": (lambda: Rows("a.json", edits=(("(", ""),)), "regular expression"),
    "no column of demonstrations": (
        lambda: Corpus("c", Rows("a.json"), demonstrations=Rows("b.json")),
        "without a demonstration column",
    ),
    "one suite twice": (
        lambda: Corpus("c", Rows("a.json"), suites=(published.aime24(), published.aime24())),
        "two named 'aime24'",
    ),
    "a suite's name": (lambda: Benchmark("AIME 24", Rows("a.json")), "lower-case"),
    "longest": (lambda: Corpus("c", Rows("a.json"), longest=0), "at least 1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_value_is_told_at_once(name: str) -> None:
    make, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_prompts_keep_braces_that_are_not_the_slot() -> None:
    for prompt in (qwen_math(), r1(), llama()):
        assert prompt(r"\frac{1}{2}{x}") == prompt.text.replace("{question}", r"\frac{1}{2}{x}")
    assert llama()("Why?").startswith("Question:\nWhy?\nPlease reason")
    assert Chat(system="Be brief.")("Why?") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
    ]


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv", "rows.parquet"])
def test_every_kind_of_file_gives_the_same_problems(folder: Path, name: str) -> None:
    columns = {"demonstration": "solution", "level": "level"}
    data = loaders.load(corpus(Rows(str(folder / name), **columns)))
    expected = loaders.load(corpus(Rows(str(folder / "rows.json"), **columns)))
    assert (data.train, data.validation) == (expected.train, expected.validation)
    assert (len(data.train), len(data.validation)) == (9, 3)
    for problem in data.train:
        assert problem.demonstration is not None
        assert verify(problem.demonstration, problem.answer) is Verdict.CORRECT
        assert 1 <= problem.level <= 5


def test_what_is_held_out_follows_from_the_texts_alone(folder: Path) -> None:
    (folder / "back.json").write_text(json.dumps(ROWS[::-1]))
    values = [
        corpus(Rows(str(folder / name)), seed=seed, train=train)
        for name, seed, train in (("rows.json", 0, None), ("rows.json", 7, 4), ("back.json", 1, 5))
    ]
    loaded = [loaders.load(value) for value in values]
    held_out = [{p.question for p in data.validation} for data in loaded]
    assert held_out[0] == held_out[1] == held_out[2]
    assert [len(data.train) for data in loaded] == [9, 4, 5]
    for data, questions in zip(loaded, held_out, strict=True):
        assert not questions & {p.question for p in data.train}
    assert loaded[1].origins[0].left_out == {loaders.HELD_OUT: 3, loaders.UNUSED: 5}


def test_a_question_of_the_validation_is_not_trained_on(folder: Path) -> None:
    twice = [*ROWS, *({**row, "problem": f" {row['problem']} "} for row in ROWS)]
    (folder / "twice.json").write_text(json.dumps(twice))
    data = loaders.load(corpus(Rows(str(folder / "twice.json")), validation=3))
    seen = {p.question for p in data.validation}
    assert not seen & {p.question for p in data.train}
    assert data.origins[0].left_out == {loaders.HELD_OUT: 3, loaders.REPEATED: 1}
    assert len(data.train) == 20


def test_rows_without_a_question_or_a_gold_are_counted(folder: Path) -> None:
    blank = [{**ROWS[0], "problem": ""}, {**ROWS[1], "answer": None}, {**ROWS[2], "answer": ""}]
    (folder / "blank.json").write_text(json.dumps([*blank, *ROWS]))
    data = loaders.load(corpus(Rows(str(folder / "blank.json")), validation=0))
    assert data.origins[0].left_out == {"no question": 1, "no gold answer": 2}
    assert len(data.train) == data.origins[0].rows - 3


def test_demonstrations_of_another_file_are_joined_by_question(folder: Path) -> None:
    written = [
        {"q": f"  {row['problem']} ".replace(" plus", "\n plus"), "text": row["solution"]}
        for row in ROWS[:6]
    ]
    written.append({"q": "What is the moon?", "text": "far"})
    (folder / "written.json").write_text(json.dumps(written))
    columns = Rows(str(folder / "written.json"), question="q", demonstration="text")
    base = Rows(str(folder / "rows.json"))
    data = loaders.load(corpus(base, demonstrations=columns, validation=0))
    shown = {p.question: p.demonstration for p in data.train if p.demonstration}
    assert shown == {row["problem"]: row["solution"] for row in ROWS[:6]}
    assert data.origins[1].left_out == {loaders.UNMATCHED: 1}
    (folder / "other.json").write_text(json.dumps(written[-1:]))
    other = Rows(str(folder / "other.json"), question="q", demonstration="text")
    with pytest.raises(ValueError, match="none of the 1 demonstrations"):
        loaders.load(corpus(base, demonstrations=other))


def missing(folder: Path) -> dict[str, tuple[Rows, str]]:
    return {
        "file": (Rows(str(folder / "row.json")), "did you mean rows.json"),
        "folder": (Rows(str(folder / "none" / "rows.json")), "there is no folder"),
        "kind": (Rows(str(folder / "rows.txt")), "neither a file"),
        "column": (Rows(str(folder / "rows.csv"), question="promblem"), "did you mean problem"),
        "level": (Rows(str(folder / "rows.csv"), level="levle"), "for Rows.level; did you mean"),
        "revision": (Rows(str(folder / "rows.csv"), revision="0" * 16), "has SHA-256"),
        "hub": (Rows("nobody-at-all/nothing-at-all"), "the hub does not give it"),
    }


@pytest.mark.parametrize("name", ["file", "folder", "kind", "column", "level", "revision", "hub"])
def test_what_is_missing_is_told_before_training_with_the_nearest_name(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    rows, message = missing(folder)[name]
    recipe = Recipe("arithmetic-1m", corpus(rows)).using(upge.grpo(), questions=2)
    with pytest.raises(ValueError, match=message):
        validate(Study("missing", {"arm": recipe}))


def test_a_model_without_a_chat_template_is_refused_a_chat(folder: Path) -> None:
    data = corpus(Rows(str(folder / "rows.json")), prompt=Chat())
    recipe = Recipe("arithmetic-1m", data).using(upge.grpo(), questions=2)
    with pytest.raises(ValueError, match="no chat template"):
        validate(Study("chat", {"arm": recipe}))


def test_a_pinned_file_is_the_one_that_was_meant(folder: Path) -> None:
    path = folder / "rows.csv"
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    data = loaders.load(corpus(Rows(str(path), revision=found[:12])))
    assert (data.origins[0].revision, data.origins[0].pinned) == (found, True)


def test_suites_are_named_without_reading_a_table(folder: Path) -> None:
    nowhere = corpus(Rows("nowhere.json"), suites=published.benchmarks())
    assert loaders.outside(nowhere)["gpqa_diamond"] is True
    assert loaders.outside(nowhere)["aime24"] is False
    assert loaders.outside(Data("arithmetic"))["words"] is True


# --- what rows say --------------------------------------------------------------------------------

GOLDS = {
    "204": "204",
    r"\boxed{204}": "204",
    r"Then $x=\boxed{\frac{1}{2}}$.": r"\frac{1}{2}",
    "6*12=<<6*12=72>>72\n#### 72": "72",
    "#### 1,000\n": "1,000",
    r"\boxed{": "",
}


@pytest.mark.parametrize("answer", GOLDS, ids=repr)
def test_the_gold_of_a_solution_is_its_final_answer(answer: str) -> None:
    assert gold_of(answer) == GOLDS[answer]


def one(row: dict[str, Any], **columns: Any) -> Any:
    return read([row], Rows("a table", **columns), "test").problems[0]


def test_chats_and_nested_values_are_read() -> None:
    row = {
        "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": "1+1?"}],
        "target": [{"role": "assistant", "content": "<think>\ntwo"}],
        "reward_model": {"ground_truth": "2", "style": "rule"},
    }
    found = one(
        row,
        question="prompt",
        answer="reward_model.ground_truth",
        demonstration="target",
        edits=((r"^<think>\n", ""),),
    )
    assert (found.question, found.answer, found.demonstration) == ("1+1?", "2", "two")
    with pytest.raises(ValueError, match=r"did you mean reward_model.ground_truth"):
        one(row, question="prompt", answer="reward_model.ground_trut")


def test_options_are_lettered_and_the_gold_is_the_letter() -> None:
    row = {"q": "Which?", "c": {"text": ["up", "down", "left"], "label": ["1", "2", "3"]}, "k": "2"}
    found = one(
        row, question="q", answer="k", options=("c.text",), labels="c.label", instruction="Choose."
    )
    assert (found.question, found.answer) == ("Which?\n\nA) up\nB) down\nC) left\n\nChoose.", "B")


def test_shuffled_options_follow_from_the_question_and_keep_the_right_one() -> None:
    columns = {"question": "q", "answer": "right", "options": ("right", "w1", "w2", "w3")}
    letters = set()
    for number in range(40):
        row = {"q": f"Which {number}?", "right": "yes", "w1": "no", "w2": "nay", "w3": "never"}
        found = one(row, **columns, shuffled=True)
        assert found == one(row, **columns, shuffled=True)
        assert f"{found.answer}) yes" in found.question
        letters.add(found.answer)
    assert letters == {"A", "B", "C", "D"}


@pytest.mark.parametrize("identity", ["same", "other"])
def test_ids_tell_problems_apart(identity: str) -> None:
    rows = [{"problem": "a", "answer": "1", "n": 1}, {"problem": "b", "answer": "2", "n": 1}]
    rows[1]["n"] = 1 if identity == "same" else 2
    if identity == "other":
        found = read(rows, Rows("t", id="n"), "c/train").problems
        assert [p.id for p in found] == ["c/train/1", "c/train/2"]
        return
    with pytest.raises(ValueError, match="1 ids twice in column 'n'"):
        read(rows, Rows("t", id="n"), "c/train")


# --- folders laid out as the hub lays them out ----------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders with the file layouts and columns of hub data sets; nothing is downloaded."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    gsm8k = tmp_path / "gsm8k" / "main"
    gsm8k.mkdir(parents=True)
    worked = [{"question": r["problem"], "answer": f"<<1+1=2>>{r['solution']}"} for r in ROWS]
    for split in ("train", "test"):
        table = pa.Table.from_pylist(worked if split == "train" else worked[:3])
        parquet.write_table(table, gsm8k / f"{split}-00000-of-00001.parquet")
    (tmp_path / "gsm8k" / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n"
        "  - split: train\n    path: main/train-*\n  - split: test\n    path: main/test-*\n---\n"
    )
    arc = tmp_path / "arc"
    arc.mkdir()
    choice = {"text": ["up", "down"], "label": ["A", "B"]}
    rows = [{"id": "x1", "question": "Which way?", "choices": choice, "answerKey": "B"}]
    parquet.write_table(pa.Table.from_pylist(rows), arc / "test-00000-of-00001.parquet")
    return tmp_path


def placed(rows: Rows, folder: Path) -> Rows:
    """The published columns of a data set, over a local folder in place of its hub name."""
    return replace(rows, source=str(folder), revision=None)


def test_a_folder_in_the_hubs_layout_is_read_by_config_and_split(hub: Path) -> None:
    value = published.gsm8k(validation=2)
    suite = value.suites[0]
    data = loaders.load(
        Corpus(
            "gsm8k",
            placed(value.rows, hub / "gsm8k"),
            validation=2,
            suites=(Benchmark("gsm8k", placed(suite.rows, hub / "gsm8k")),),
        )
    )
    assert (len(data.train), len(data.validation), len(data.suites[0].problems)) == (10, 2, 3)
    problem = data.train[0]
    assert problem.demonstration is not None
    assert problem.demonstration.endswith(rf"The answer is \boxed{{{problem.answer}}}.")
    assert "<<" not in problem.demonstration
    assert data.suites[0].problems[0].demonstration is None


def test_the_options_of_arc_are_read_from_its_layout(hub: Path) -> None:
    rows = replace(placed(published.arc_challenge().rows, hub / "arc"), config=None)
    data = loaders.load(Corpus("arc", rows, validation=0, prompt=Text()))
    assert data.train[0].answer == "B"
    assert "A) up\nB) down" in data.train[0].question


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"split": "tset"}, "did you mean test"), ({"config": "mian"}, "'mian' not found.*main")],
)
def test_a_split_or_config_that_is_not_there_is_told(
    hub: Path, changes: dict[str, str], message: str
) -> None:
    rows = replace(placed(published.gsm8k().rows, hub / "gsm8k"), **changes)
    with pytest.raises(ValueError, match=message):
        loaders.load(Corpus("gsm8k", rows))


# --- overlap --------------------------------------------------------------------------------------

LONG = "A train leaves the station at noon and travels north at sixty miles an hour until it rains"


def test_overlaps_are_runs_of_words_or_whole_short_questions(folder: Path) -> None:
    train = [{"problem": f"First: {LONG}.", "answer": 1}, {"problem": "What is 2+2?", "answer": 4},
             {"problem": "Something else of no more than a dozen words", "answer": 0}]  # fmt: skip
    test = [{"problem": f"Later, {LONG.upper()}, then?", "answer": 1},
            {"problem": "what is  $2 + 2$", "answer": 4}, {"problem": "What is 2-2?", "answer": 0},
            {"problem": " ".join(LONG.split()[:12]), "answer": 1}]  # fmt: skip
    for name, rows in (("train", train), ("test", test)):
        (folder / f"{name}.json").write_text(json.dumps(rows))
    suite = Benchmark("later", Rows(str(folder / "test.json")))
    value = corpus(Rows(str(folder / "train.json")), validation=0, suites=(suite,))
    _, found = overlaps(loaders.load(value))
    assert found.shared == ("sums/later/00000", "sums/later/00001")
    assert found.example.startswith("a train leaves")


def test_the_small_world_shares_no_problem_with_its_tests() -> None:
    assert all(not each.shared for each in overlaps(loaders.load(Data("arithmetic"))))


def test_doctor_says_where_problems_are_from_and_what_overlaps(folder: Path) -> None:
    suite = Benchmark("seen", Rows(str(folder / "rows.jsonl")))
    value = corpus(Rows(str(folder / "rows.csv"), demonstration="solution"), suites=(suite,))
    checks = data_checks(Study("seen", {"arm": Recipe("arithmetic-1m", value)}))
    said = "\n".join(text for _, text in checks)
    assert all(fine for fine, _ in checks)
    assert "12 rows, 9 problems (3 held out for validation), not pinned; Rows(..., rev" in said
    assert "24 of 24 golds verify against themselves" in said
    assert "9 of 9 demonstrations looked at end in their gold, 100.0% (90% or more" in said
    assert "9 of 12 in seen share 13 words in a row with training" in said


def test_doctor_names_the_one_published_table_that_is_not_pinned(monkeypatch, tmp_path) -> None:
    arm = Recipe("arithmetic-1m", published.openr1_math_46k())
    file = StudyFile(Path("x.py"), sys, {"study": Study("large", {"arm": arm})})
    monkeypatch.setattr(doctor, "validate", lambda study, lacking: lacking.append("the hub"))
    said = [text for fine, text in study_checks(file, tmp_path) if "is not pinned" in text and fine]
    table = "Elliott/Openr1-Math-46k-8192"
    assert said == [f"large: {table} is not pinned; runs take what it is when they begin"]


@pytest.mark.parametrize(("right", "said"), [
    (0, "0 of 20 demonstrations looked at end in their gold, 0.0% (90% or more are needed); "
        "19 wrong, 1 unparsable_answer"),
    (17, "17 of 20 demonstrations looked at end in their gold, 85.0% (90% or more are needed); "
         "2 wrong, 1 unparsable_answer"),
    (18, "18 of 20 demonstrations looked at end in their gold, 90.0% (90% or more are needed); "
         "1 wrong, 1 unparsable_answer"),
])  # fmt: skip
def test_doctor_says_which_share_of_demonstrations_is_right_and_wants_most(
    right, said, tmp_path
) -> None:
    texts = [rf"\boxed{{{n if n < right else n + 1}}}" for n in range(19)] + ["nothing"]
    rows = [{"q": f"{n}?", "answer": str(n), "text": text} for n, text in enumerate(texts)]
    path = tmp_path / "shown.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    value = Corpus("shown", Rows(str(path), "q", demonstration="text"), validation=0)
    checks = data_checks(Study("shown", {"arm": Recipe("arithmetic-1m", value)}))
    assert (right >= 18, f"shown: {said}") in checks


# --- the real files -------------------------------------------------------------------------------

real = pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")


def shared(name: str, **columns: Any) -> Rows:
    return Rows(str(SHARED / f"{name}.jsonl"), **columns)


@real
def test_all_of_the_shared_data_loads_and_its_demonstrations_are_right() -> None:
    names = {"aime24": 30, "aime25": 30, "amc23": 40, "math500": 500, "minerva": 272,
             "olympiad": 674, "arc_c": 1172}  # fmt: skip
    suites = [
        Benchmark(name, shared(f"benchmarks/{name}", id="id",
                               level="level" if name == "math500" else None))
        for name in names
    ]  # fmt: skip
    columns = {"question": "question", "edits": published.GSM8K_AS_BOXED}
    rows = shared("gsm8k/train", demonstration="answer", **columns)
    suites.append(Benchmark("gsm8k", shared("gsm8k/test", question="question")))
    data = loaders.load(Corpus("shared", rows, suites=tuple(suites), validation=100))
    sizes = {suite.name: len(suite.problems) for suite in data.suites}
    assert sizes == {**names, "gsm8k": 1319}
    assert (len(data.train), len(data.validation)) == (7373, 100)
    every = [problem for part in data.parts.values() for problem in part]
    for problem in every:
        assert data.verifier(rf"\boxed{{{problem.answer}}}", problem.answer) is Verdict.CORRECT
    for problem in data.train:
        assert problem.demonstration is not None
        assert data.verifier(problem.demonstration, problem.answer) is Verdict.CORRECT
    levels = [p.level for p in data.parts["math500"]]
    assert [levels.count(level) for level in range(1, 6)] == [43, 90, 105, 128, 134]


@real
def test_raw_solutions_of_gsm8k_are_graded_by_their_last_line() -> None:
    rows = shared("gsm8k/test", question="question", demonstration="answer")
    data = loaders.load(Corpus("raw", rows, validation=0))
    for problem in data.train:
        assert problem.demonstration is not None
        assert verify(problem.demonstration, problem.answer) is Verdict.CORRECT


def test_importing_a_published_corpus_needs_no_heavy_package() -> None:
    program = (
        "import sys; from workbench.problems import published; published.openr1_math_46k();"
        "print(sorted({'torch', 'datasets', 'sympy', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")

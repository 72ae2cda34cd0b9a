"""The vLLM engine draws what the transformers engine would, and fails in words; with real vLLM."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from system import wait_for_end

from workbench import Sampling, replace, upge
from workbench.models import locate
from workbench.problems import Problem, Verdict
from workbench.recipe import Data, Recipe
from workbench.resources import Resources
from workbench.rollout import Request
from workbench.rollout.engine import Decoding, EngineKilled
from workbench.rollout.transformers_engine import TransformersEngine
from workbench.schema import Failure
from workbench.training.opening import open_engine
from workbench.training.policy import load_policy
from workbench.training.sequences import Sequence, engine_logprobs
from workbench.worker import DONE, FAILED

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make install-vllm"),
]

TEMPERATURE = 1.3
TOLERANCE = 1e-4  # nats a token, float32 on a processor
GREEDY = Decoding(temperature=1e-6, top_p=1.0, max_tokens=40)
DRAWN = Decoding(TEMPERATURE, top_p=1.0, max_tokens=24)
RECIPE = Recipe(
    "arithmetic-1m",
    Data("arithmetic"),
    upge.grpo(),
    sampling=Sampling(temperature=TEMPERATURE, engine="vllm"),
)
ON_PROCESSOR = Resources(device="cpu", engine_cache=0.25)
QUESTIONS = ["345+812", "1", "345-(812+170)*999", "008*888+123-456"]
LONG = "+".join(["345"] * 40)  # longer than a block of the prefix cache, 128 tokens on a processor


@pytest.fixture(scope="module")
def policy():
    device = torch.device("cpu")
    return load_policy(locate(RECIPE.model), device, "float32", TEMPERATURE, values=False)


@pytest.fixture(scope="module")
def engine(policy):
    """One engine for all tests: to start it takes half a minute of processor time."""
    engine = open_engine(RECIPE, policy, ON_PROCESSOR, lambda: None)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def prompts(policy):
    return [policy.encode(f"{question}?\n") for question in QUESTIONS]


def requests(prompts, samples):
    return [Request(prompt, samples, seed=2**63 - 1 - n) for n, prompt in enumerate(prompts)]


def tokens_of(found):
    return [[response.tokens for response in responses] for responses in found]


def transformers_of(policy):
    return TransformersEngine(policy.model, policy.end, policy.pad)


# --- the same interface, the same numbers ---------------------------------------------------------


def test_greedy_outputs_are_those_of_the_transformers_engine(engine, policy, prompts):
    asked = requests(prompts, 2)
    wanted = transformers_of(policy).generate(asked, GREEDY)
    found = engine.generate(asked, GREEDY)
    assert tokens_of(found) == tokens_of(wanted)
    assert [r.finished for rs in found for r in rs] == [r.finished for rs in wanted for r in rs]


def test_log_probabilities_of_what_it_draws_are_the_trainers(engine, policy, prompts):
    asked = requests(prompts, 8)
    heard = {}
    found = engine.generate(asked, DRAWN, heard.__setitem__)
    assert [heard[place] for place in range(len(asked))] == found
    sequences = [
        Sequence(
            Problem("p", "q", "a"),
            0,
            request.prompt,
            r.tokens,
            "",
            Verdict.WRONG,
            engine_logprobs=r.logprobs,
        )
        for request, responses in zip(asked, found, strict=True)
        for r in responses
    ]
    with torch.no_grad():
        own = policy.score(policy.lay_out(sequences)).logprobs
    theirs = engine_logprobs(sequences, own.shape[1])
    torch.testing.assert_close(theirs, own, atol=TOLERANCE, rtol=0)
    assert all(len({r.tokens for r in responses}) > 1 for responses in found)


def test_responses_end_in_the_end_token_or_are_cut(engine, policy, prompts):
    found = engine.generate(requests(prompts, 8), DRAWN)
    responses = [r for rs in found for r in rs]
    assert {r.finished for r in responses} == {True, False}
    for r in responses:
        assert r.finished == (r.tokens[-1] in policy.end)
        assert not set(r.tokens[:-1]) & policy.end
        assert r.finished or len(r.tokens) == DRAWN.max_tokens
        assert len(r.logprobs) == len(r.tokens)


def test_seeds_decide_what_is_drawn(engine, prompts):
    asked = requests(prompts, 3)
    twice = [tokens_of(engine.generate(asked, DRAWN)) for _ in range(2)]
    others = [Request(r.prompt, r.samples, r.seed - 1000) for r in asked]
    assert twice[0] == twice[1] != tokens_of(engine.generate(others, DRAWN))
    assert tokens_of(engine.generate(asked[2:3], DRAWN)) == twice[0][2:3]


def test_a_nucleus_is_drawn_from_without_log_probabilities(engine, policy, prompts):
    """Those of vLLM would be over the nucleus, and the interface promises the whole vocabulary."""
    asked = requests(prompts, 2)
    found = engine.generate(asked, Decoding(1.0, top_p=1e-3, max_tokens=40))
    assert tokens_of(found) == tokens_of(transformers_of(policy).generate(asked, GREEDY))
    assert all(r.logprobs == () for responses in found for r in responses)


# --- weights --------------------------------------------------------------------------------------


def test_after_an_update_it_draws_with_the_new_weights(engine, policy, prompts):
    """Also where the beginning of a prompt was kept in the prefix cache under the old ones."""
    asked = requests([*prompts, policy.encode(f"{LONG}?\n")], 1)
    assert len(asked[-1].prompt) > 128
    before = tokens_of(engine.generate(asked, GREEDY))
    old = [parameter.detach().clone() for _, parameter in policy.parameters()]
    optimizer = torch.optim.AdamW([p for _, p in policy.parameters()], lr=2e-2, fused=True)
    for _, parameter in policy.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    optimizer.step()
    wanted = tokens_of(transformers_of(policy).generate(asked, GREEDY))
    found = tokens_of(engine.generate(asked, GREEDY))
    with torch.no_grad():
        for (_, parameter), value in zip(policy.parameters(), old, strict=True):
            parameter.copy_(value)
    assert found == wanted != before
    assert tokens_of(engine.generate(asked, GREEDY)) == before


# --- several processes ----------------------------------------------------------------------------


@pytest.fixture
def spread(policy):
    """An engine of two processes, as GPUs have; Resources refuse it here for what it leaves."""
    with closing(open_engine(RECIPE, policy, ON_PROCESSOR, lambda: None)) as engine:
        engine.setup = dataclasses.replace(engine.setup, processes=2)
        yield engine
    for left in Path("/dev/shm").glob("-tp:0-*-cpushm_*"):
        left.unlink()


def test_a_model_that_is_spread_over_two_processes_draws_the_same(spread, policy, prompts):
    asked, wanted, found = requests(prompts, 2), [], []
    for _ in range(2):
        wanted.append(tokens_of(transformers_of(policy).generate(asked, GREEDY)))
        found.append(tokens_of(spread.generate(asked, GREEDY)))
        with torch.no_grad():
            for _, parameter in policy.parameters():
                parameter.neg_()  # twice it is what it was
    processes = [process.pid for process in spread._processes.values()]
    spread.close()
    assert found == wanted
    assert found[0] != found[1]
    assert len(processes) == 2
    for process in processes:
        wait_for_end(process)


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_temperature_that_vllm_would_raise_is_refused(engine, prompts):
    with pytest.raises(ValueError, match=r"temperature 0.005 .* use at least 0.01"):
        engine.generate(requests(prompts, 1), Decoding(0.005, top_p=1.0, max_tokens=4))


def test_a_process_that_dies_is_an_error_with_its_reason(engine, prompts):
    engine.generate(requests(prompts, 1), DRAWN)
    (process,) = engine._processes.values()
    engine.get_on = lambda: os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(EngineKilled, match=f"process {process.pid} was ended by SIGKILL"):
        engine.generate(requests(prompts, 64), DRAWN)
    engine.get_on = lambda: None
    assert not children(os.getpid())


def test_an_error_of_vllm_is_told_with_its_name_and_leaves_no_process(engine, policy, prompts):
    engine.weights, weights = lambda: [("no.such.weight", torch.zeros(1))], engine.weights
    with pytest.raises(RuntimeError, match=r"the vLLM engine failed: \w+: .*no"):
        engine.generate(requests(prompts, 1), DRAWN)
    engine.weights = weights
    assert not children(os.getpid())


def children(pid):
    """Processes of this parent that run the engine, by their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            command = (path.parent / "cmdline").read_text()
        except OSError:
            continue
        if parent == pid and "spawn_main" in command:
            found.append(int(path.parent.name))
    return found


# --- training -------------------------------------------------------------------------------------


@pytest.fixture
def start(open_run, small):
    """Starts a worker that trains with the engine, and its run."""
    started = []

    def worker(processes=1, steps=3):
        sampling = Sampling(max_tokens=24, engine="vllm")
        method = upge.corrected(upge.luffy(), 2.0)  # demonstrations move it whatever is drawn
        run = open_run(replace(small, method=method, sampling=sampling, steps=steps))
        resources = {"device": "cpu", "engine_cache": 0.25, "processes": processes}
        command = [sys.executable, "-m", "workbench.worker", str(run.path)]
        with open(run.path / "log", "wb") as output:
            options = ["--resources", json.dumps(resources)]
            started.append(subprocess.Popen(command + options, stdout=output, stderr=output))
        return started[-1], run

    yield worker
    for process in started:
        process.kill()
        process.wait()


def wait_for_rows(process, run, count):
    while not run.rows() or len(run.rows()) < count:
        assert process.poll() is None, (run.path / "log").read_text()[-3000:]
        time.sleep(0.1)


def test_a_worker_trains_with_it_and_records_how_far_it_is_from_the_trainer(start):
    process, run = start()
    assert process.wait() == DONE, (run.path / "log").read_text()[-3000:]
    rows = [row for row in run.rows() if row["step"] > 0]
    assert len(rows) == 3
    for row in rows:
        assert_drawn_by_the_policy(row)


def assert_drawn_by_the_policy(row):
    assert row["optim/gradient_norm"] > 0 and row["optim/skipped"] == 0
    assert 0 < row["ratio/engine_mismatch"] < TOLERANCE
    assert row["ratio/engine_raw_mean"] == pytest.approx(1, abs=TOLERANCE)
    assert row["ratio/engine_applied_max"] == row["ratio/engine_raw_max"] < 1.01
    assert row["ratio/engine_cut"] == 0


def test_a_team_trains_with_an_engine_each_and_one_that_is_killed_is_tried_again(start):
    process, run = start(processes=2, steps=1000)
    wait_for_rows(process, run, 3)
    for row in run.rows()[1:]:
        assert_drawn_by_the_policy(row)
    ((engine, peer),) = [(e, p) for p in children(process.pid) for e in children(p)]
    os.kill(engine, signal.SIGKILL)
    assert process.wait() == FAILED
    assert run.failure["kind"] == Failure.KILLED
    assert f"process {peer} of the team: EngineKilled: " in run.failure["reason"]
    wait_for_end(peer)


@pytest.mark.parametrize("killed", ["engine", "worker"])
def test_what_is_killed_ends_the_other(start, killed):
    process, run = start()
    wait_for_rows(process, run, 1)  # the first validation has been drawn
    (engine,) = children(process.pid)
    os.kill(engine if killed == "engine" else process.pid, signal.SIGKILL)
    code = process.wait()
    wait_for_end(engine)
    if killed == "engine":
        assert code == FAILED
        assert run.failure["kind"] == Failure.KILLED
        assert f"process {engine} was ended by SIGKILL" in run.failure["reason"]

"""The body of a vLLM engine's process: takes orders, answers prompt by prompt; imports vllm alone.

vLLM's scheduler and its share of the model run in this one process (`external_launcher`, without
vLLM's own processes): an engine over several devices is several such processes that are given the
same orders and, with the same seeds, do the same. So weights reach each of them directly, as
handles of the trainer's own tensors: shared memory on a processor, CUDA IPC on a GPU.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from torch import Tensor

from workbench.processes import importing, serving
from workbench.recipe import GREEDY_BELOW, LEAST_TEMPERATURE
from workbench.rollout.engine import Decoding, Request, Response

SHARED = "shared"  # our backend of vLLM's weight-transfer API, by name
WHOLE_SEED = 2**62  # vLLM adds the number of the sample, and the sum must fit 64 bits

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # cells share the cores as their slots say
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True)
class Setup:
    """What an engine is made from.

    Attributes:
        model: folder or hub name; its configuration is read, its weights never are.
        settings: of the configuration, as the trainer has them.
        dtype: of weights and computation.
        end: token ids that end a response.
        sequences: responses that are decoded together.
        processes: how many the model is spread over (tensor parallel).
        gpu: number of the first of its GPUs among those this cell sees; None is the processor.
        shares_gpu: whether the trainer is on one of them: then the engine sleeps between orders.
        cache: bytes for keys and values on each device; None leaves it to vLLM, on a GPU.
    """

    model: str
    settings: dict[str, Any]
    dtype: str
    end: tuple[int, ...]
    sequences: int
    processes: int
    gpu: int | None
    shares_gpu: bool
    cache: int | None


@dataclass(frozen=True)
class Order:
    """Prompts to answer, with these weights."""

    requests: Sequence[Request]
    decoding: Decoding
    weights: Sequence[tuple[str, Tensor]]


@dataclass(frozen=True)
class Answer:
    """All responses to one request of the order, by its index."""

    index: int
    responses: list[Response]


@dataclass(frozen=True)
class Done:
    """The order is carried out."""


def serve(orders: Connection, setup: Setup, rank: int, port: int) -> None:
    """Carries out orders until the other end of the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer says when to end
    with serving(orders):
        served = Served(setup, rank, port)
        while True:
            served.carry_out(orders.recv(), orders)


class Served:
    """vLLM with its share of the model; asleep, between orders, where it shares the GPU."""

    def __init__(self, setup: Setup, rank: int, port: int) -> None:
        os.environ.update(ENVIRONMENT, **_place(setup, rank, port))
        with importing():
            from vllm import LLM  # pyright: ignore[reportMissingImports]

        _register()
        self.setup, self.rank, self.asleep = setup, rank, False
        cache = {} if setup.cache is None else {"kv_cache_memory_bytes": setup.cache}
        self.llm = LLM(
            setup.model,
            hf_overrides=setup.settings,
            load_format="dummy",  # every order brings the weights
            weight_transfer_config={"backend": SHARED},
            skip_tokenizer_init=True,
            generation_config="vllm",  # nothing but what an order says
            dtype=setup.dtype,
            max_model_len=-1,  # as long as fits
            max_num_seqs=setup.sequences,
            logprobs_mode="processed_logprobs",
            tensor_parallel_size=setup.processes,
            distributed_executor_backend="external_launcher",
            enforce_eager=setup.gpu is None,
            enable_sleep_mode=setup.shares_gpu,
            gpu_memory_utilization=0.45 if setup.shares_gpu else 0.9,
            **cache,
        )
        self.llm.init_weight_transfer_engine({"init_info": {}})

    def carry_out(self, order: Order, trainer: Connection) -> None:
        """Loads the weights and answers; the first of several processes speaks for all."""
        self._load(order.weights)
        for answer in self._answers(order):
            if self.rank == 0:
                trainer.send(answer)
        if self.setup.shares_gpu:
            self.llm.sleep(level=2)
            self.asleep = True
        trainer.send(Done())

    def _load(self, weights: Sequence[tuple[str, Tensor]]) -> None:
        """Copies the weights from the trainer's memory; what was cached of older ones is gone."""
        if self.asleep:
            self.llm.wake_up(tags=["weights"])
        self.llm.start_weight_update()
        self.llm.update_weights({"update_info": {"weights": weights}})
        self.llm.finish_weight_update()
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
        self.asleep = False
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache, so old weights would answer")

    def _answers(self, order: Order) -> Iterator[Answer]:
        engine = self.llm.llm_engine
        for index, request in enumerate(order.requests):
            prompt: Any = {"prompt_token_ids": list(request.prompt)}
            params = _params(request, order.decoding, self.setup.end)
            engine.add_request(str(index), prompt, params)
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    index = int(output.request_id)
                    found = [_response(each) for each in output.outputs]
                    wanted = order.requests[index].samples
                    if order.decoding.temperature < GREEDY_BELOW:
                        found *= wanted
                    if len(found) != wanted:
                        raise RuntimeError(f"vLLM gave {len(found)} of {wanted} samples")
                    yield Answer(index, found)


def _register() -> None:
    """Makes `SHARED` a backend of vLLM's weight-transfer API: one for every place.

    vLLM's own are for one each, and none for a processor: `ipc` for the trainer's GPU, `nccl` for
    others.
    """
    from vllm.distributed.weight_transfer import (  # pyright: ignore[reportMissingImports]
        WeightTransferEngine,
        WeightTransferEngineFactory,
    )
    from vllm.model_executor.model_loader import reload  # pyright: ignore[reportMissingImports]

    class SharedTensors(WeightTransferEngine):
        """Copies tensors of the trainer into the model, a layer at a time as it is complete."""

        init_info_cls, update_info_cls = dict, dict

        def init_transfer_engine(self, init_info: dict[str, Any]) -> None:
            """An order brings handles that can be read as they are: nobody has to be met."""

        def start_weight_update(self) -> None:
            reload.initialize_layerwise_reload(self.model)

        def update_weights(self, update_info: dict[str, Any]) -> None:
            if self.device.type == "cpu":  # there is no accelerator that the base could wait for
                self.receive_weights(update_info)
            else:
                super().update_weights(update_info)

        def receive_weights(self, update_info: dict[str, Any]) -> None:
            self.model.load_weights(update_info["weights"])

        def finish_weight_update(self) -> None:
            reload.finalize_layerwise_reload(self.model, self.model_config)
            if self.device.type == "cpu" and self.model.config.tie_word_embeddings:
                # It multiplies by a packed copy there, and keeps the old one of tied heads.
                head = self.model.lm_head
                head.quant_method.process_weights_after_loading(head)

        def shutdown(self) -> None:
            """Nothing is held between updates."""

    WeightTransferEngineFactory.register_engine(SHARED, SharedTensors)


def _place(setup: Setup, rank: int, port: int) -> dict[str, str]:
    """Where this process stands among its like, as torch's launchers say it."""
    # On a processor compilation takes most of a minute and what it compiles a few microseconds.
    eager = {"TORCHDYNAMO_DISABLE": "1"} if setup.gpu is None else {}
    return {
        **eager,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank + (setup.gpu or 0)),
        "WORLD_SIZE": str(setup.processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def has_logprobs(decoding: Decoding) -> bool:
    """Whether vLLM's log-probabilities are over the whole vocabulary, at the temperature."""
    return decoding.top_p == 1 and decoding.temperature >= LEAST_TEMPERATURE


def _params(request: Request, decoding: Decoding, end: Sequence[int]) -> Any:
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
    from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

    greedy = decoding.temperature < GREEDY_BELOW
    return SamplingParams(
        n=1 if greedy else request.samples,  # vLLM refuses equal ones
        seed=request.seed % WHOLE_SEED,
        temperature=0.0 if greedy else decoding.temperature,
        top_p=decoding.top_p,
        max_tokens=decoding.max_tokens,
        stop_token_ids=list(end),
        logprobs=0 if has_logprobs(decoding) else None,  # of the sampled token alone
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,  # else each sample comes by itself as it ends
    )


def _response(output: Any) -> Response:
    tokens = tuple(output.token_ids)
    pairs = zip(tokens, output.logprobs or (), strict=output.logprobs is not None)
    logprobs = tuple(found[token].logprob for token, found in pairs)
    return Response(tokens, logprobs, output.finish_reason == "stop")

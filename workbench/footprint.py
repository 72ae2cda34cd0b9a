"""What a run takes of a device, worked out before it: bytes of memory and seconds of a step.

Every figure comes with its formula. Symbols: P parameters, L layers, h width, i width of the MLP,
V vocabulary, T tokens of a micro-batch. Sizes of tensors are those of this trainer with the Qwen2
and Llama models of transformers 5, counted from the tensors that a forward pass keeps
(`tests/test_footprint.py` counts them again); attention keeps no matrix of T x T. Seconds follow
from the arithmetic and the traffic of a step and from the two efficiencies below, which are
assumptions and were not measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.devices import DEVICES, GIB, Device
from workbench.models import SHIPPED, shipped
from workbench.problems.corpus import Corpus
from workbench.provenance import gpus
from workbench.recipe import Measurement, Model, Probe, Recipe
from workbench.records import read_json
from workbench.resources import Resources
from workbench.training.sums import VOCABULARY, sums

UPDATE_EFFICIENCY = 0.4  # of the peak arithmetic: what dense models of this size are trained at
DECODE_EFFICIENCY = 0.5  # of the peak bandwidth
SHARED_ENGINE = 0.45  # of a GPU's memory that a vLLM engine beside the trainer may fill
SMALL_WORLD_PROMPT = 64  # tokens, more than any prompt of the embedded world has


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama-like decoder, named as configurations name them."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    qkv_bias: bool

    @property
    def head(self) -> int:
        """Width of an attention head."""
        return self.hidden // self.heads

    @property
    def in_layer(self) -> int:
        """Parameters of one layer: attention, MLP and two norms."""
        h, keys = self.hidden, self.kv_heads * self.head
        biases = h + 2 * keys if self.qkv_bias else 0
        return 2 * h * h + 2 * h * keys + biases + 3 * h * self.intermediate + 2 * h

    @property
    def tables(self) -> int:
        """Matrices of the vocabulary: the embedding, and the output layer unless it is that."""
        return 1 if self.tied else 2

    @property
    def parameters(self) -> int:
        """All of them; tied embeddings count once."""
        embeddings = self.vocabulary * self.hidden * self.tables
        return embeddings + self.layers * self.in_layer + self.hidden

    @property
    def multiplied(self) -> int:
        """Parameters that a token is multiplied by: all but a table that is only looked up in."""
        return self.parameters - (0 if self.tied else self.vocabulary * self.hidden)

    def parted(self) -> int:
        """Numbers that a block's part of the gradient is kept as: sums of matrices, and vectors."""
        h, keys = self.hidden, self.kv_heads * self.head
        each = sums(7 * self.layers + self.tables)
        outputs = 3 * h + 2 * keys + 2 * self.intermediate
        biases = h + 2 * keys if self.qkv_bias else 0
        of_vocabulary = self.tables * min(h, VOCABULARY * each) * self.vocabulary
        return of_vocabulary + self.layers * (each * outputs + biases + 2 * h) + h

    def cached(self, number: int) -> int:
        """Bytes of keys and values for a token, numbers of that many bytes."""
        return 2 * self.layers * self.kv_heads * self.head * number


# As the models' own config.json say, so that a plan needs no network.
PUBLISHED = {
    "Qwen/Qwen2.5-Math-1.5B": Shape(28, 1536, 8960, 12, 2, 151_936, True, True),
    "Qwen/Qwen2.5-Math-7B": Shape(28, 3584, 18_944, 28, 4, 152_064, False, True),
    "meta-llama/Llama-3.1-8B": Shape(32, 4096, 14_336, 32, 8, 128_256, False, False),
}
_BIASED = {"qwen2": True, "llama": False, "mistral": False}


def device_here(resources: Resources) -> Device | None:
    """The first GPU of this machine, if its name says which of the known ones it is."""
    names = [] if resources.device == "cpu" else [name.lower() for _, name in gpus()]
    for name in names[:1]:
        for device in DEVICES.values():
            if all(part in name for part in device.name.split("-")):
                return device
    return None


def shape_of(model: Model) -> Shape | None:
    """The shape of a published, shipped or local model; None where it is not known here."""
    if model.name in PUBLISHED:
        return PUBLISHED[model.name]
    folder = SHIPPED / model.name if model.name in shipped() else Path(model.name)
    path = folder / "config.json"
    return _shape(read_json(path)) if path.is_file() else None


def _shape(config: Mapping[str, Any]) -> Shape | None:
    kind = config.get("model_type")
    if kind not in _BIASED:
        return None
    heads = config["num_attention_heads"]
    return Shape(
        config["num_hidden_layers"],
        config["hidden_size"],
        config["intermediate_size"],
        heads,
        config.get("num_key_value_heads") or heads,
        config["vocab_size"],
        config.get("tie_word_embeddings", False),
        config.get("attention_bias", _BIASED[kind]),
    )


@dataclass(frozen=True)
class Line:
    """One thing that takes memory, in bytes, and how that was worked out."""

    what: str
    bytes: int
    formula: str


@dataclass(frozen=True)
class Memory:
    """Bytes on the trainer's GPU.

    Attributes:
        parameters: of the model.
        always: held all through a run.
        update: more while a micro-batch is differentiated.
        rollout: more while responses are drawn, for training or for validation.
        going_back: more while a step that is not finite is undone, where the recipe says so.
        evaluation: all that is held while what was trained is measured.
        probe: all that is held while its gradient is measured.
    """

    parameters: int
    always: tuple[Line, ...]
    update: tuple[Line, ...]
    rollout: tuple[Line, ...]
    going_back: tuple[Line, ...]
    evaluation: tuple[Line, ...]
    probe: tuple[Line, ...]

    @property
    def peak(self) -> int:
        """The most that is held at one time: all but what is always held take turns."""
        more = max(total(lines) for lines in (self.update, self.rollout, self.going_back))
        return max(total(self.always) + more, total(self.evaluation), total(self.probe))


def total(lines: Sequence[Line]) -> int:
    """Bytes of all the lines."""
    return sum(line.bytes for line in lines)


def memory(
    recipe: Recipe,
    resources: Resources,
    shape: Shape,
    device: Device | None,
    probes: Sequence[Probe] = (),
) -> Memory:
    """What a recipe takes of its GPU, or of a processor where there is none."""
    p, n = shape.parameters, resources.processes
    measured = _engine(recipe, resources, shape, device, resources.sequences)
    evaluation = (Line("the whole policy", 4 * p, "4 P, float32"), *measured)
    if recipe.method is None:
        return Memory(p, (), (), (), (), evaluation, ())
    over = f" / {n}" if n > 1 else ""
    always = [
        Line("weights", 4 * p // n, f"4 P{over}, float32"),
        Line("gradients", 4 * p // n, f"4 P{over}, kept until the next update"),
        Line("AdamW", 8 * p // n, f"8 P{over}, two moments"),
    ]
    if recipe.method.needs_base:
        always.append(Line("base model", 4 * p // n, f"4 P{over}, of a KL penalty"))
    if n > 1 and recipe.sampling.engine == "transformers":
        always.append(Line("copy to decode with", 4 * p, "4 P, float32"))
    if recipe.gradient_blocks > 1:
        always.append(_parted(recipe, shape))
    rollout = _engine(recipe, resources, shape, device, _drawn(recipe, resources))
    if n > 1 and recipe.sampling.engine == "vllm":
        given = Line("the same, put together of shards", p * _number(recipe), "given to vLLM")
        rollout.insert(1, given)
    update = _update(recipe, resources, shape, device is not None)
    back = [Line("the model of an earlier step", 4 * p, "4 P, whole, copied from and let go")]
    return Memory(
        p,
        tuple(always),
        tuple(update),
        tuple(rollout),
        tuple(back) if recipe.optimizer.nonfinite == "rollback" else (),
        evaluation,
        _probe(recipe, resources, shape, device, probes),
    )


def _probe(
    recipe: Recipe,
    resources: Resources,
    shape: Shape,
    device: Device | None,
    probes: Sequence[Probe],
) -> tuple[Line, ...]:
    """A trainer in one process, however many have trained, as it differentiates or draws; at most.

    A sequence's gradient is whole until it is sketched, beside that of the last update where the
    policy was moved to a distance. At step 0, at no distance, AdamW has no moments yet. It draws
    many more responses than a step does, and as many of them together as may be.
    """
    if not probes:
        return ()
    alone = replace(resources, processes=1)
    trainer = memory(recipe, alone, shape, device)
    answers = max(
        p.questions * max(p.replicates * p.rollouts, p.difficulty_samples) for p in probes
    )
    drawn = _engine(recipe, alone, shape, device, min(resources.sequences, answers))
    whole = Line("gradient of one sequence", 4 * shape.parameters, "4 P, before it is sketched")
    differentiated = (*trainer.update, whole) if any(p.distance for p in probes) else trainer.update
    return (*trainer.always, *max(differentiated, tuple(drawn), key=total))


def _parted(recipe: Recipe, shape: Shape) -> Line:
    """What the gradient is told apart in, which every process has whole."""
    questions = -(-recipe.questions // recipe.updates_per_batch)
    parts = 2 * min(recipe.gradient_blocks, questions)
    text = f"4 bytes of {shape.parted():,} sums of each of {parts} parts, for the live statistics"
    return Line("gradient told apart by block", 4 * parts * shape.parted(), text)


def largest(
    recipes: Mapping[str, Recipe],
    resources: Resources,
    device: Device,
    probes: Sequence[Probe] = (),
) -> tuple[str, Memory] | None:
    """The recipe that takes most memory, by label; None where no shape is known."""
    found: dict[str, Memory] = {}
    for label, recipe in recipes.items():
        shape = shape_of(recipe.base)
        if shape is not None and recipe.method is not None:
            found[label] = memory(recipe, resources, shape, device, probes)
    return max(found.items(), key=lambda pair: pair[1].peak, default=None)


def micro_batch(recipe: Recipe, resources: Resources, on_gpu: bool) -> int:
    """Tokens that are differentiated together: one whole sequence at least."""
    return max(resources.micro_batch(on_gpu), longest_sequence(recipe))


def longest_sequence(recipe: Recipe) -> int:
    """Tokens of the longest prompt that is kept, with the longest response."""
    prompt = recipe.data.longest if isinstance(recipe.data, Corpus) else SMALL_WORLD_PROMPT
    return (prompt or 0) + recipe.sampling.max_tokens


def _update(recipe: Recipe, resources: Resources, shape: Shape, on_gpu: bool) -> list[Line]:
    tokens = micro_batch(recipe, resources, on_gpu)
    h, v, mixed = shape.hidden, shape.vocabulary, recipe.dtype == "bfloat16"
    inside = 34 * h + 8 * shape.intermediate if mixed else 40 * h + 16 * shape.intermediate
    written = "34 h + 8 i" if mixed else "40 h + 16 i"
    copied = 2 * shape.multiplied
    parted = in_parts(recipe, resources, shape, on_gpu)
    copied = 2 * (shape.multiplied - v * h * parted)  # in parts the output layer has its own
    lines = [
        Line("activations", shape.layers * inside * tokens, f"L ({written}) T, T = {tokens:,}"),
        _logits(resources, shape, tokens, mixed) if parted else _whole_logits(v, tokens),
    ]
    if resources.recompute:
        kept = 4 * h * shape.layers * tokens
        again = Line("a layer computed again", inside * tokens, f"({written}) T")
        largest = max(lines[1], again, key=lambda line: line.bytes)  # they are not held together
        lines = [Line("activations", kept, f"4 h L T, T = {tokens:,}: recomputed"), largest]
        copied = 2 * v * h * (not parted)  # a layer's own are gone after it
    if mixed and copied:
        lines.append(Line("weights in bfloat16", copied, "2 bytes of each that is multiplied by"))
    if resources.processes > 1:
        outside = shape.parameters - shape.layers * shape.in_layer
        size = 8 * (outside + 2 * shape.in_layer)
        text = "8 (P outside of layers + two layers): weights and gradients"
        lines.append(Line("what is put together of shards", size, text))
    return lines


def _whole_logits(vocabulary: int, tokens: int) -> Line:
    return Line("logits", 20 * vocabulary * tokens, "20 V T: float32 of five, one kept")


def _logits(resources: Resources, shape: Shape, tokens: int, mixed: bool) -> Line:
    """What the output layer takes where its logits are computed in parts."""
    v, h = shape.vocabulary, shape.hidden
    rows, number = max(1, resources.logits // v), 6 if mixed else 4
    held = max(12 * v * h, number * v * h + 20 * v * rows) + 16 * h * tokens
    text = (
        f"max(12 V h, {number} V h + 20 V R) + 16 h T: of R = {rows:,} tokens at a time, again for "
        "the gradient, and the layer's gradient while that of a part is added to it"
    )
    return Line("logits", held, text)


def in_parts(recipe: Recipe, resources: Resources, shape: Shape, on_gpu: bool) -> bool:
    """Whether the logits of a micro-batch are too many to be held together."""
    return micro_batch(recipe, resources, on_gpu) * shape.vocabulary > resources.logits


def _drawn(recipe: Recipe, resources: Resources) -> int:
    """Responses that are decoded together in a step or in a validation, whichever has more."""
    method, plan = recipe.method, recipe.validation
    rollouts = recipe.questions * recipe.rollouts if method and method.samples_rollouts else 0
    validated = resources.sequences if plan.problems is None else plan.problems * plan.samples
    return min(resources.sequences, max(rollouts, validated))


def _engine(
    recipe: Recipe, resources: Resources, shape: Shape, device: Device | None, rows: int
) -> list[Line]:
    """What the rollout engine takes beside the trainer, with so many responses at a time."""
    if resources.engine_apart:
        return []
    if recipe.sampling.engine == "transformers":
        size = shape.cached(4) * longest_sequence(recipe) * rows
        return [Line("keys and values", size, f"8 L (KV heads) (head) s of {rows} sequences")]
    weights = shape.parameters * _number(recipe) // resources.tensor_parallel
    given = Line("vLLM's weights", weights, "P in the recipe's dtype, over tensor_parallel")
    if resources.engine_cache is not None:
        cache = int(resources.engine_cache * GIB)
        return [given, Line("keys and values", cache, "Resources.engine_cache")]
    if device is None:
        return [given, Line("keys and values", GIB, "1 GiB on a processor")]
    left = max(0, int(SHARED_ENGINE * device.memory) - weights)
    return [given, Line("keys and values", left, "what is left of 45% of the GPU")]


def _number(recipe: Recipe) -> int:
    """Bytes of a number in the rollout engine: transformers decodes with the float32 weights."""
    return 2 if recipe.sampling.engine == "vllm" and recipe.dtype == "bfloat16" else 4


@dataclass(frozen=True)
class Seconds:
    """What a step takes at most, when every response is as long as may be.

    Attributes:
        rollout, update: seconds.
        together: sequences that are decoded together, by each process.
        rollout_rate, update_rate: tokens a second.
    """

    rollout: float
    update: float
    together: int
    rollout_rate: float
    update_rate: float


def seconds(recipe: Recipe, resources: Resources, shape: Shape, device: Device) -> Seconds:
    """The longest step of a recipe on a device, under the two assumed efficiencies.

    A decoded token reads all weights once for all sequences together, and the keys and values of
    each (half of the longest, on average); beyond some number of sequences arithmetic takes longer.
    A forward pass takes 2 operations a parameter and token (Kaplan et al., 2001.08361) and 2 L h s
    for attention (PaLM, 2204.02311, appendix B, of which causal attention needs half); a backward
    pass takes two of them, and one more each is a pass that scores the old policy by itself and
    layers that are recomputed; the output layer is passed once more where its logits are computed
    in parts. What several processes wait for each other is not counted.
    """
    method = recipe.method
    answers = recipe.questions * recipe.rollouts if method and method.samples_rollouts else 0
    demonstrations = recipe.questions if method and method.needs_demonstrations else 0
    together, rollout_rate = _drawing(recipe, answers, resources, shape, device)
    update_rate = resources.processes * _update_rate(recipe, resources, shape, device)
    tokens = (answers + demonstrations) * longest_sequence(recipe) * recipe.epochs_per_batch
    return Seconds(
        answers * recipe.sampling.max_tokens / rollout_rate,
        tokens / update_rate,
        together,
        rollout_rate,
        update_rate,
    )


@dataclass(frozen=True)
class Answering:
    """What an evaluation on one suite takes at most, when every answer is as long as may be.

    Attributes:
        answers: that are drawn.
        tokens: of all of them.
        rate: tokens a second.
    """

    answers: int
    tokens: int
    rate: float

    @property
    def seconds(self) -> float:
        return self.tokens / self.rate


def answering(
    recipe: Recipe,
    measured: Measurement,
    problems: int,
    resources: Resources,
    shape: Shape,
    device: Device,
) -> Answering:
    """The longest evaluation on a suite of so many problems, decoded as rollouts are."""
    asked = min(problems, measured.problems or problems)
    answers = asked * measured.samples
    sampling = replace(recipe.sampling, max_tokens=measured.max_tokens)
    drawn = replace(recipe, sampling=sampling)
    _, rate = _drawing(drawn, answers, resources, shape, device)
    return Answering(answers, answers * measured.max_tokens, rate)


def _drawing(
    recipe: Recipe, answers: int, resources: Resources, shape: Shape, device: Device
) -> tuple[int, float]:
    """Sequences that each process decodes together, and tokens a second of all processes."""
    n = resources.processes  # each draws its share
    together = max(1, min(-(-answers // n), _room(recipe, resources, shape, device)))
    return together, n * _decode_rate(recipe, resources, shape, device, together)


def _room(recipe: Recipe, resources: Resources, shape: Shape, device: Device) -> int:
    """Sequences of the longest kind whose keys and values fit the engine's cache."""
    if recipe.sampling.engine == "transformers":
        return resources.sequences
    share = 0.9 if resources.engine_apart else SHARED_ENGINE
    weights = shape.parameters * _number(recipe) // resources.tensor_parallel
    cache = share * device.memory - weights
    if resources.engine_cache is not None:
        cache = resources.engine_cache * GIB
    each = shape.cached(_number(recipe)) * longest_sequence(recipe) / resources.tensor_parallel
    return min(resources.sequences, int(cache / each))


def _decode_rate(
    recipe: Recipe, resources: Resources, shape: Shape, device: Device, together: int
) -> float:
    number = _number(recipe)
    context = together * longest_sequence(recipe) / 2
    read = shape.multiplied * number + shape.cached(number) * context
    dtype = "bfloat16" if number == 2 else "float32"
    done = 2 * shape.multiplied * together
    slowest = max(
        read / (DECODE_EFFICIENCY * device.bandwidth),
        done / (UPDATE_EFFICIENCY * device.dense[dtype]),
    )
    return together / slowest * resources.tensor_parallel


def _update_rate(recipe: Recipe, resources: Resources, shape: Shape, device: Device) -> float:
    once = recipe.updates_per_batch == recipe.epochs_per_batch == 1
    scored = not once or (recipe.method is not None and recipe.method.needs_old)
    passes = 3 + scored + resources.recompute  # a backward pass counts as two
    s = longest_sequence(recipe)
    forward = 2 * (shape.multiplied + shape.layers * shape.hidden * s)
    again = 2 * shape.vocabulary * shape.hidden * in_parts(recipe, resources, shape, on_gpu=True)
    return UPDATE_EFFICIENCY * device.dense[recipe.dtype] / (passes * forward + again)

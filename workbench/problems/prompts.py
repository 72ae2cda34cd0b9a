r"""How a question is put to a model, as values; the published ones are functions that return them.

The released code of the paper renders Qwen2.5-Math prompts with the tokenizer's own chat template,
whose system message asks for `\boxed{}`, and Llama-3.1-8B, a base model without one, with a plain
text (`exp_scripts/train.sh` and `train_llama.sh` of Unify-Post-Training).
"""

from workbench.identity import Component

SLOT = "{question}"
STEP_BY_STEP = r"Please reason step by step, and put your final answer within \boxed{}."


class Text(Component):
    """A text with the question in its one `{question}` slot; other braces stand for themselves.

    A tokenizer reads its special tokens in it, such as `<|im_start|>`.
    """

    text: str = SLOT

    def check(self) -> None:
        _check_slot(self, "text", self.text)

    def __call__(self, question: str) -> str:
        """The text with the question in it."""
        return self.text.replace(SLOT, question)


class Chat(Component):
    """A conversation, rendered by the chat template of the model's own tokenizer.

    Attributes:
        user: the user's turn, with the question in its one `{question}` slot.
        system: the system message; None leaves it to the template, which may have one of its own.
        start: the beginning of the response, given to the model, such as `<think>`.
    """

    user: str = SLOT
    system: str | None = None
    start: str = ""

    def check(self) -> None:
        _check_slot(self, "user", self.user)

    def __call__(self, question: str) -> list[dict[str, str]]:
        """The turns, as chat templates take them."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": self.user.replace(SLOT, question)}]


Prompt = Text | Chat


def _check_slot(owner: Component, field: str, text: str) -> None:
    if text.count(SLOT) != 1:
        raise ValueError(
            f"{type(owner).__name__}.{field} needs the slot {SLOT} exactly once, got {text!r}; "
            f'the shortest valid one is "{SLOT}"'
        )


def qwen_math() -> Text:
    """Qwen2.5-Math's own chat format with its request for a boxed answer, spelled out.

    As its tokenizer's chat template renders a lone question: what HPT and LUFFY train Qwen with.
    """
    return Text(
        f"<|im_start|>system\n{STEP_BY_STEP}<|im_end|>\n"
        f"<|im_start|>user\n{SLOT}<|im_end|>\n<|im_start|>assistant\n"
    )


def r1() -> Text:
    """DeepSeek-R1-Zero's template (arXiv 2501.12948, Table 1), with its `<answer>` tags."""
    return Text(
        "A conversation between User and Assistant. The user asks a question, and the Assistant "
        "solves it. The assistant first thinks about the reasoning process in the mind and then "
        "provides the user with the answer. The reasoning process and answer are enclosed within "
        "<think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning "
        "process here </think> <answer> answer here </answer>. "
        f"User: {SLOT}. Assistant:"
    )


def llama() -> Text:
    """The plain text that the paper's released code trains Llama-3.1-8B with."""
    return Text(f"Question:\n{SLOT}\n{STEP_BY_STEP}\nAnswer:\nLet's think step by step.")

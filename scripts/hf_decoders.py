"""Which GPTs, T5s, Marians and BARTs are the reference, and in which cases?"""

import numpy as np
from hf_inputs import LOW, Case, Draw, Reference, positions


def gpt_heads(draw, family):
    right, left, size = draw.text(), draw.text("left"), draw.size
    bare, many = dict(input_ids=draw.text(rows=1)["input_ids"].repeat(2, 0)), draw.choices()
    bare["input_ids"][1] = bare["input_ids"][1][::-1]
    note = "compare where attention_mask is 1: a row of padding sees nothing"
    rest = dict(leftpad=Case(left | positions(left), note)) if family == "gpt2" else {}
    rest["bare"] = Case(bare)
    rest["types"] = Case(right | draw.types(right), "token types are rows of the word embedding")
    rest["posids"] = Case(bare | dict(position_ids=5 + np.arange(size.length)[None]))
    train = {
        head: Case(right | labels)
        for head, labels in {
            "LMHeadModel": dict(labels=draw.some(right, 0.7)),
            "ForSequenceClassification": dict(labels=draw.classes(3)),
            "ForTokenClassification": dict(labels=draw.classes(3, *right["input_ids"].shape)),
            "ForQuestionAnswering": draw.span(),
        }.items()
    }
    ends = many["attention_mask"].sum(-1) - 1
    double = {"input_ids": many["input_ids"], "mc_token_ids": ends, "mc_labels": draw.classes(3)}
    cases = {head: dict(train=case) | rest for head, case in train.items()}
    cases["ForSequenceClassification"].pop("posids")
    cases["Model"] = dict(right=Case(right)) | rest
    cases["DoubleHeadsModel"] = dict(
        train=Case(double | dict(labels=draw.some(many, 0.7)), "no mask: it must have two axes"),
        bare=Case({"input_ids": many["input_ids"]}, "reads the last token of each choice"),
    )
    return cases


def gpt(size):
    config = dict(
        vocab_size=size.vocab,
        n_embd=size.width,
        n_layer=size.depth,
        n_head=size.heads,
        n_positions=size.length + 16,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
    )
    heads = ["LMHeadModel", "Model", "ForSequenceClassification", "DoubleHeadsModel"]
    more = dict(config, scale_attn_by_inverse_layer_idx=True, n_inner=size.mlp)
    more |= dict(activation_function="gelu")
    families = (
        ("openai-gpt", "OpenAIGPT", heads, "tokens_embed positions_embed"),
        ("gpt2", "GPT2", [*heads, "ForTokenClassification", "ForQuestionAnswering"], "wte wpe"),
        ("gpt2", "GPT2", ["LMHeadModel_options"], ""),
    )
    for family, prefix, heads, tables in families:
        for head in heads:
            folder = f"{family}/{prefix}{head}"
            draw = Draw(folder, size)
            main, labels = head == "LMHeadModel", {}
            if "Classification" in head:
                labels = dict(num_labels=3)
            elif head == "DoubleHeadsModel":
                labels = dict(num_labels=1)
            names = [f"transformer.{name}.weight" for name in tables.split()]
            if family == "openai-gpt":
                names += [f"transformer.h.0.attn.c_proj.{name}" for name in ("weight", "bias")]
            prompt = draw.text(length=5)["input_ids"][:1]
            prompts = np.concatenate([prompt, prompt[:, ::-1], (prompt * 7) % size.vocab])
            generate = {"prompt": (dict(input_ids=np.maximum(prompts, LOW)), {})}
            if family == "gpt2":
                generate["leftpad"] = (draw.text("left", 6), {})
            yield Reference(
                folder,
                (more if "options" in head else config) | labels,
                gpt_heads(draw, family)[head.partition("_")[0]],
                main=main,
                probe=(1e-2, *names) if main else (),
                generate=generate if main else {},
            )


def seq2seq_cases(draw, start, labels=True):
    """Cases of an encoder-decoder; `start` begins the decoder's input."""
    source, left, long = draw.text(), draw.text("left"), draw.text(length=3 * draw.size.length)
    target = draw.text(length=7, rows=draw.size.rows)
    wanted = np.where(target["attention_mask"] > 0, target["input_ids"], -100)
    shifted = np.pad(target["input_ids"], ((0, 0), (1, 0)), constant_values=start)[:, :-1]
    decoder = dict(decoder_input_ids=shifted)
    seen = dict(decoder_attention_mask=np.pad(target["attention_mask"], ((0, 0), (1, 0)))[:, :-1])
    seen["decoder_attention_mask"][:, 0] = 1
    bare = dict(input_ids=source["input_ids"])
    cases = dict(train=Case(source | dict(labels=wanted), "decoder input: labels, shifted"))
    cases = cases if labels else dict(right=Case(source | decoder))
    cases |= dict(
        decmask=Case(source | decoder | seen),
        left=Case(left | decoder, "source padded on the left"),
        bare=Case(bare | decoder, "no mask: padding is seen"),
    )
    return cases, Case(long | decoder, "longer than the table of distances")


def t5(size):
    config = dict(
        vocab_size=size.vocab,
        d_model=size.width,
        d_kv=6,  # times heads, this is not d_model
        d_ff=size.mlp,
        num_layers=size.depth,
        num_decoder_layers=size.depth,
        num_heads=size.heads,
        relative_attention_num_buckets=12,
        relative_attention_max_distance=20,
        decoder_start_token_id=0,
    )
    gated = dict(config, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    gated["num_decoder_layers"] = size.depth - 1
    own = {"tie_word_embeddings": False}
    v11 = "untied, its own lm_head, no rescaling before it; config.json "
    variants = (
        ("T5ForConditionalGeneration", config, {}, "tied, ReLU: version 1.0"),
        ("T5ForConditionalGeneration_v11", gated, own, v11 + "says so"),
        ("T5ForConditionalGeneration_v11resaved", gated, {},
         v11 + "says tied, as transformers 5 writes it: scale_decoder_outputs tells"),
        ("T5Model", dict(config, num_decoder_layers=size.depth + 1), {}, "the decoder is deeper"),
        ("T5Model_v11", dict(gated, num_decoder_layers=size.depth + 1), {}, ""),
        ("T5EncoderModel", config, {}, ""),
        ("T5ForSequenceClassification", dict(config, num_labels=3), {}, "reads the decoder at EOS"),
        ("T5ForTokenClassification", dict(config, num_labels=3), {}, "the encoder alone"),
        ("T5ForQuestionAnswering", config, {}, "")
    )  # fmt: skip
    for name, config, file_config, note in variants:
        draw = Draw(f"t5/{name}", size, end=1)
        generation = "Generation" in name
        cases, long = seq2seq_cases(draw, start=0, labels=generation)
        cases["long"] = long
        text, left = draw.text(), draw.text("left")
        if name == "T5EncoderModel":
            long = Case({n: x for n, x in long.inputs.items() if "decoder" not in n}, long.note)
            cases = dict(right=Case(text), left=Case(left), long=long)
        elif "For" in name and not generation:
            labels = {
                "T5ForSequenceClassification": dict(labels=draw.classes(3)),
                "T5ForTokenClassification": dict(labels=draw.classes(3, *text["input_ids"].shape)),
                "T5ForQuestionAnswering": draw.span(),
            }[name]
            cases = dict(train=Case(text | labels), left=Case(left))
        first = name == "T5ForConditionalGeneration"
        start = dict(decoder_start_token_id=0)
        yield Reference(
            f"t5/{name}",
            config,
            cases,
            note,
            main=first,
            probe=(1e-3, "shared.weight") if first else (),
            generate={"s2s": (draw.text(), start)} if "resaved" not in name and generation else {},
            file_config=file_config,
            file_lacks=("scale_decoder_outputs",) if file_config else (),
        )


def marian_and_bart(size):
    last = size.vocab - 1
    stacks = {
        f"{stack}_{what}": value
        for stack, values in dict(
            encoder=(size.depth, size.heads, size.mlp),
            decoder=(size.depth + 1, size.heads // 2 if size.heads % 2 == 0 else 1, size.mlp + 8),
        ).items()
        for what, value in zip(("layers", "attention_heads", "ffn_dim"), values, strict=True)
    }
    config = dict(vocab_size=size.vocab, d_model=size.width, **stacks)
    marian = dict(config, max_position_embeddings=64, pad_token_id=last, eos_token_id=0)
    marian |= dict(decoder_start_token_id=last, scale_embedding=True, activation_function="relu")
    marian |= dict(forced_eos_token_id=None, decoder_vocab_size=size.vocab, bos_token_id=None)
    bart = dict(config, max_position_embeddings=4 * size.length)
    opus, own = dict(marian, activation_function="swish"), dict(tie_word_embeddings=False)
    norm = [
        f"model.{stack}.layers.0.{place}.{name}"
        for stack, attention in (("encoder", "self_attn"), ("decoder", "encoder_attn"))
        for place in (f"{attention}_layer_norm", "fc2")
        for name in ("weight", "bias")
    ]
    tables = ["model.shared.weight"]
    tables += [f"model.{stack}.embed_positions.weight" for stack in ("encoder", "decoder")]
    for folder, config, start, probe, main in (
        ("marian/MarianMTModel", marian, last, norm, True),
        ("marian/MarianMTModel_swish", opus, last, (), False),
        ("marian/MarianMTModel_untied", opus | own, last, (), False),
        ("marian/MarianModel", opus, last, (), False),
        ("bart/BartForConditionalGeneration", bart, 2, tables, True),
        (
            "bart/BartForConditionalGeneration_scaled",
            bart | dict(scale_embedding=True),
            2,
            (),
            False,
        ),
        ("bart/BartForConditionalGeneration_untied", bart | own, 2, (), False),
        ("bart/BartModel", bart, 2, (), False),
        ("bart/BartModel_untied", bart | own, 2, (), False),
    ):
        special = dict(pad=last, end=0) if "marian" in folder else dict(pad=1, begin=0, end=2)
        draw = Draw(folder, size, **special)
        cases, _ = seq2seq_cases(draw, start, labels="Model" not in folder or "MT" in folder)
        kwargs = dict(decoder_start_token_id=start)
        if "bart" in folder:
            kwargs["forced_eos_token_id"] = 2
        yield Reference(
            folder,
            config,
            cases,
            main=main,
            probe=(1e-2, *probe) if main else (),
            generate={"s2s": (draw.text(), kwargs)} if main else {},
        )

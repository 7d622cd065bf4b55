"""How fast, and what, are other implementations on our batches and with our weights?

Workers of `bench_train.py` and `bench_decode.py`, which start them under an interpreter that
has torch, transformers and ctranslate2 (tfx needs none of them), one process a contender:

    peers.py train  batches.npz --system marian|torch --threads 2
    peers.py decode task.npz    --system marian|ctranslate2 --beam 5 --rows 64 --threads 2

Both files hold `config`, the resolved configuration of the tfx run as JSON, and `vocab`.
batches.npz adds the arrays of step i as `<i>/source`, `<i>/target_in`, `<i>/target_out` [rows,
length] int32, 0 padding. task.npz adds float32 parameters under the names of a Marian
checkpoint, weights [out, in], `model.shared.weight` the one embedding; `sentences` int32, all
source sentences end to end, each with its EOS; and `lengths` of them.

The peers get what is known to be good for them: no final norm in torch.nn.Transformer and no
dropout inside its mlp (as in our model), one batch conversion before the clock starts, Adam's
fused step.
"""

import argparse
import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from interleave import serve

sys.path.insert(0, str(Path(__file__).parent.parent))
from tfx.lab import ctranslate  # which asks for numpy alone

PAD, EOS, BOS = 0, 1, 3


def read(path):
    """The configuration, and the arrays by name."""
    file = dict(np.load(path))
    config = json.loads(str(file.pop("config")))
    config["model"]["vocab"] = int(file.pop("vocab"))
    return config, file


def marian(c):
    """MarianMTModel of a model config: post-norm, three-way tied, our positions and epsilon."""
    import torch
    from transformers import MarianConfig, MarianMTModel, logging

    logging.set_verbosity_error()
    model = MarianMTModel(
        MarianConfig(
            vocab_size=c["vocab"],
            d_model=c["width"],
            encoder_layers=c["depth"],
            decoder_layers=c["decoder_depth"] or c["depth"],
            encoder_attention_heads=c["heads"],
            decoder_attention_heads=c["heads"],
            encoder_ffn_dim=c["mlp"],
            decoder_ffn_dim=c["mlp"],
            activation_function=c["activation"],
            dropout=c["dropout"],
            attention_dropout=c["attention_dropout"],
            max_position_embeddings=c["max_length"],
            scale_embedding=c["scale_embeddings"],
            pad_token_id=PAD,
            eos_token_id=EOS,
            decoder_start_token_id=BOS,
            forced_eos_token_id=None,
        )
    )
    positions = ctranslate.positions(c["position"], c["max_length"], c["width"])
    for part in (model.model.encoder, model.model.decoder):
        part.embed_positions.weight.data = torch.from_numpy(positions)
    for part in model.modules():
        if isinstance(part, torch.nn.LayerNorm):
            part.eps = c["epsilon"]
    return model


def torch_transformer(c):
    """torch.nn.Transformer between embeddings and logits: (parameters, forward)."""
    import torch
    from torch import nn

    embedding = nn.Embedding(c["vocab"], c["width"])
    nn.init.normal_(embedding.weight, std=c["width"] ** -0.5)
    sizes = (c["width"], c["heads"], c["depth"], c["decoder_depth"] or c["depth"], c["mlp"])
    stacks = nn.Transformer(*sizes, c["dropout"], c["activation"], None, None, c["epsilon"], True)
    stacks.encoder.norm = stacks.decoder.norm = None
    for layer in (*stacks.encoder.layers, *stacks.decoder.layers):
        layer.dropout = nn.Identity()
        layer.self_attn.dropout = c["attention_dropout"]
    for layer in stacks.decoder.layers:
        layer.multihead_attn.dropout = c["attention_dropout"]
    positions = ctranslate.positions(c["position"], c["max_length"], c["width"])
    positions = torch.from_numpy(positions)

    def embed(ids):
        x = embedding(ids) * c["width"] ** 0.5 + positions[: ids.shape[1]]
        return nn.functional.dropout(x, c["dropout"])

    def forward(source, target):
        hidden = source == PAD
        future = torch.ones(2 * [target.shape[1]], dtype=torch.bool).triu(1)
        masks = dict(src_key_padding_mask=hidden, memory_key_padding_mask=hidden, tgt_mask=future)
        return stacks(embed(source), embed(target), **masks) @ embedding.weight.T

    return [*stacks.parameters(), embedding.weight], forward


def train(args):
    """A round is one step on each batch: forward, label-smoothed loss, backward, Adam.

    Both models find PyTorch's own fused attention (SDPA) by themselves.
    """
    import torch

    torch.set_num_threads(args.threads)
    torch.set_default_device(args.device)
    torch.manual_seed(0)
    config, arrays = read(args.file)
    steps, names = sum("/source" in key for key in arrays), ("source", "target_in", "target_out")
    tensor = lambda x: torch.from_numpy(x).long().to(args.device)
    batches = [[tensor(arrays[f"{i}/{n}"]) for n in names] for i in range(steps)]
    if args.system == "torch":
        parameters, forward = torch_transformer(config["model"])
    else:
        model = marian(config["model"]).train()
        parameters = model.parameters()

        def forward(source, target):
            return model(source, source != PAD, decoder_input_ids=target, use_cache=False).logits

    betas = config["optim"]["b1"], config["optim"]["b2"]
    optimizer = torch.optim.Adam(parameters, 1e-4, betas, config["optim"]["eps"], fused=True)
    smoothing = config["objective"]["label_smoothing"]
    cross_entropy = partial(
        torch.nn.functional.cross_entropy, ignore_index=PAD, label_smoothing=smoothing
    )

    mixed = partial(torch.autocast, args.device, torch.bfloat16, enabled=args.bf16)

    def loss_of(source, target_in, target_out):
        with mixed():
            return cross_entropy(forward(source, target_in).flatten(0, 1), target_out.flatten())

    if args.compile:
        loss_of = torch.compile(loss_of, dynamic=False)

    def step(*batch):
        optimizer.zero_grad()
        loss = loss_of(*batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def work():
        return {"loss": float(sum(step(*batch) for batch in batches)) / len(batches)}

    for batch in {batch[0].shape: batch for batch in batches}.values():
        step(*batch)
    return work


def read_task(path):
    """The configuration, parameters by name, and a list of source sentences."""
    config, arrays = read(path)
    sentences, lengths = arrays.pop("sentences"), arrays.pop("lengths")
    return config, arrays, np.split(sentences, np.cumsum(lengths)[:-1])


def decode_marian(args):
    """Hugging Face generate, sentences sorted by length, `rows` at a time."""
    import torch

    torch.set_num_threads(args.threads)
    config, arrays, sentences = read_task(args.file)
    model = marian(config["model"]).eval()
    loaded = model.load_state_dict({k: torch.from_numpy(x) for k, x in arrays.items()}, False)
    if loaded.unexpected_keys:
        raise ValueError(f"parameters that MarianMTModel has not: {loaded.unexpected_keys}")
    model.tie_weights()
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    longest = max(map(len, sentences)) + config["decode"]["extra"]
    search = dict(num_beams=args.beam, do_sample=False, max_new_tokens=longest)
    if args.beam > 1:
        search |= dict(length_penalty=config["decode"]["alpha"], early_stopping=True)

    def work():
        hypotheses = [None] * len(sentences)
        for start in range(0, len(order), args.rows):
            group = order[start : start + args.rows]
            rows = [torch.from_numpy(sentences[i]).long() for i in group]
            source = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
            out = model.generate(source, attention_mask=(source != PAD).long(), **search)
            for i, ids in zip(group, out.tolist(), strict=True):
                ended = [*ids[1:], EOS]
                hypotheses[i] = ended[: ended.index(EOS)]
        return {"hypotheses": hypotheses}

    with torch.inference_mode():
        work()
    return torch.inference_mode()(work)


def decode_ctranslate2(args):
    """CTranslate2 in float32; it sorts and batches by itself, `rows` at a time."""
    import ctranslate2

    config, arrays, sentences = read_task(args.file)
    c = config["model"]
    vocabulary = ["<blank>", "</s>", "<unk>", "<s>", *map(str, range(4, c["vocab"]))]
    with tempfile.TemporaryDirectory() as folder:
        ctranslate.specification(c, arrays, [vocabulary] * 2, {}).save(folder)
        threads = dict(inter_threads=args.inter, intra_threads=args.threads)
        translator = ctranslate2.Translator(folder, "cpu", compute_type="float32", **threads)
    ids = {token: i for i, token in enumerate(vocabulary)}
    tokens = [[vocabulary[i] for i in sentence] for sentence in sentences]
    longest = max(map(len, sentences)) + config["decode"]["extra"]

    def work():
        results = translator.translate_batch(
            tokens,
            beam_size=args.beam,
            length_penalty=config["decode"]["alpha"],
            max_batch_size=args.rows,
            max_decoding_length=longest,
        )
        return {"hypotheses": [[ids[t] for t in result.hypotheses[0]] for result in results]}

    work()
    return work


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    training, decoding = verbs.add_parser("train"), verbs.add_parser("decode")
    for verb, systems in ((training, ("marian", "torch")), (decoding, ("marian", "ctranslate2"))):
        verb.add_argument("file")
        verb.add_argument("--system", choices=systems, required=True)
        verb.add_argument("--threads", type=int, default=os.cpu_count())
    training.add_argument("--device", default="cpu")
    training.add_argument("--bf16", action="store_true", help="by autocast")
    training.add_argument("--compile", type=int, default=0, help="1: torch.compile")
    decoding.add_argument("--inter", type=int, default=1, help="CTranslate2: batches at once")
    decoding.add_argument("--beam", type=int, default=5, help="1: greedy")
    decoding.add_argument("--rows", type=int, default=64, help="sentences a batch")
    args = parser.parse_args()
    decode = {"marian": decode_marian, "ctranslate2": decode_ctranslate2}
    serve(partial(train if args.verb == "train" else decode[args.system], args))


if __name__ == "__main__":
    main()

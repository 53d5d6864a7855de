"""Train a tiny Qwen3 checkpoint that adds two numbers, from scratch, on a CPU.

The model reads ``12+30=`` one character at a time and answers ``42`` followed by the
end-of-sequence token. It takes minutes to train and its weights stay under 2 MB, yet it
is a real ``Qwen3ForCausalLM`` with a real fast tokenizer, so everything that loads a
Qwen3 checkpoint loads this one, and every answer can be checked by arithmetic.

Run from the repository root:

    python examples/train_adder.py

Needs ``torch``, ``transformers`` and ``tokenizers``.
"""

import argparse
import json
import math
import random
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
# 4 special tokens + 12 characters = 16, already a multiple of 8, so that the embedding
# splits evenly over 2, 4 or 8 tensor-parallel ranks without filler entries.
VOCAB: dict[str, int] = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *"0123456789+="])}
PAD_ID, BOS_ID, EOS_ID, UNK_ID = (VOCAB[token] for token in SPECIAL_TOKENS)

CHAT_TEMPLATE = Path(__file__).parents[1] / "configs/models/tiny-adder/chat_template.jinja"
LARGEST = 99  # operands are 0..LARGEST
IGNORE_INDEX = -100  # label that the cross-entropy skips
MAX_LENGTH = len("99+99=198") + 1  # + eos
ROPE_THETA = 10000.0


@dataclass(frozen=True)
class Sum:
    """One addition problem."""

    left: int
    right: int

    @property
    def prompt(self) -> str:
        return f"{self.left}+{self.right}="

    @property
    def answer(self) -> str:
        return str(self.left + self.right)


@dataclass(frozen=True)
class Batch:
    """Right-padded token ids, and labels that cover only the answer and eos."""

    input_ids: Tensor
    labels: Tensor


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the tiny-adder checkpoint.")
    parser.add_argument("--output", type=Path, default=Path("configs/models/tiny-adder"))
    parser.add_argument("--heldout", type=Path, default=Path("configs/data/sums-heldout.jsonl"))
    parser.add_argument("--heldout-lines", type=int, default=200, help="lines in --heldout")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args()


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A character-level fast tokenizer; encoding adds no tokens of its own."""
    tokenizer = Tokenizer(models.WordLevel(VOCAB, unk_token="<unk>"))
    # [\s\S] rather than "." so that a newline is one (unknown) character too.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()  # join without spaces
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=CHAT_TEMPLATE.read_text(encoding="utf-8"),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_model() -> Qwen3ForCausalLM:
    """A randomly initialised Qwen3 whose heads, MLP and vocabulary all divide by 8."""
    ids = {"pad_token_id": PAD_ID, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID}
    config = Qwen3Config(
        vocab_size=len(VOCAB),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=16,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        initializer_range=0.05,
        tie_word_embeddings=True,
        dtype="float32",
        **ids,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=8, **ids)
    return model


def split_sums(seed: int, heldout_lines: int) -> tuple[list[Sum], list[Sum]]:
    """Split all pairs into train and held-out.

    Pairs are held out in both orders: were 12+30 held out but 30+12 trained on, the
    model could answer from memory by learning only that addition commutes.
    """
    unordered = [(a, b) for a in range(LARGEST + 1) for b in range(a, LARGEST + 1)]
    random.Random(seed).shuffle(unordered)
    heldout, train = unordered[:heldout_lines], unordered[heldout_lines:]

    def both_orders(pairs: list[tuple[int, int]]) -> list[Sum]:
        return [Sum(*pair) for pair in sorted({p for a, b in pairs for p in ((a, b), (b, a))})]

    return both_orders(train), both_orders(heldout)


def encode(sums: list[Sum], tokenizer: PreTrainedTokenizerFast) -> Batch:
    input_ids = torch.full((len(sums), MAX_LENGTH), PAD_ID)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    for row, item in enumerate(sums):
        prompt = tokenizer.encode(item.prompt)
        answer = [*tokenizer.encode(item.answer), EOS_ID]
        end = len(prompt) + len(answer)
        input_ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return Batch(input_ids, labels)


def learning_rate_factor(step: int, steps: int, warmup: int = 100) -> float:
    """Linear warmup, then cosine decay to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(model: Qwen3ForCausalLM, data: Batch, args: argparse.Namespace) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.9, 0.98), weight_decay=0.1)
    factor = partial(learning_rate_factor, steps=args.steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    order = torch.empty(0, dtype=torch.long)
    model.train()
    for step in range(1, args.steps + 1):
        if len(order) < args.batch_size:
            order = torch.randperm(len(data.input_ids))
        rows, order = order[: args.batch_size], order[args.batch_size :]
        # Padding is on the right, where a causal model's answer tokens cannot see it, so
        # no attention mask is needed.
        loss = model(input_ids=data.input_ids[rows], labels=data.labels[rows]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if step % 200 == 0 or step == args.steps:
            print(f"step {step:5d}  loss {loss.item():.6f}", flush=True)


def evaluate(model: Qwen3ForCausalLM, data: Batch, batch_size: int = 1000) -> tuple[float, float]:
    """Greedy accuracy over whole answers, and the smallest margin among their tokens.

    Greedy decoding gives the true answer exactly when each of its tokens has the highest
    logit given the ones before. The margin is the true token's logit less the best
    other's: negative on an error, otherwise the room left for rounding differences.
    """
    model.eval()
    margins: list[Tensor] = []
    for start in range(0, len(data.input_ids), batch_size):
        rows = slice(start, start + batch_size)
        with torch.no_grad():
            logits = model(input_ids=data.input_ids[rows]).logits[:, :-1]
        labels = data.labels[rows, 1:]
        target = labels.clamp(min=0).unsqueeze(-1)
        true = logits.gather(-1, target).squeeze(-1)
        other = logits.scatter(-1, target, -math.inf).amax(-1)
        margin = (true - other).masked_fill(labels == IGNORE_INDEX, math.inf)
        margins.append(margin.amin(-1))
    smallest_per_sum = torch.cat(margins)
    return (smallest_per_sum > 0).double().mean().item(), smallest_per_sum.min().item()


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    # transformers 5 writes two names that older readers do not know; both versions read these.
    set_key(output / "config.json", "rope_theta", ROPE_THETA)
    set_key(output / "tokenizer_config.json", "tokenizer_class", "PreTrainedTokenizerFast")


def set_key(path: Path, key: str, value: str | float) -> None:
    content = {**json.loads(path.read_text(encoding="utf-8")), key: value}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_heldout(sums: list[Sum], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"prompt": item.prompt, "answer": item.answer}) + "\n" for item in sums]
    path.write_text("".join(lines), encoding="utf-8")


def main() -> None:
    args = parse_args()
    started = time.monotonic()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)

    tokenizer = build_tokenizer()
    model = build_model()
    train_sums, heldout_sums = split_sums(args.seed, args.heldout_lines)
    file_sums = random.Random(args.seed).sample(heldout_sums, args.heldout_lines)
    train_data, heldout_data = encode(train_sums, tokenizer), encode(heldout_sums, tokenizer)

    train(model, train_data, args)

    save(model, tokenizer, args.output)
    write_heldout(file_sums, args.heldout)

    print(f"parameters       {model.num_parameters():,}")
    print(f"wall time        {time.monotonic() - started:.0f} s, {args.threads} thread(s)")
    for name, data in (("train", train_data), ("held-out", heldout_data)):
        accuracy, margin = evaluate(model, data)
        sums = len(data.input_ids)
        print(f"{name:<16} {sums} sums, accuracy {accuracy:.2%}, smallest margin {margin:.3f}")
    for path in (*sorted(args.output.iterdir()), args.heldout):
        print(f"{path.stat().st_size:>9,} bytes  {path.name}")


if __name__ == "__main__":
    main()

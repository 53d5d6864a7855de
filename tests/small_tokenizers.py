"""Small tokenizers of the kinds that models have, made where a test wants them."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from raylaunch.frontends.vocabulary import LETTERS

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
WORDS = ("▁the", "▁a", "▁Paris", "▁and", "ing", "é", "日本", "▁", "n", "'", "t", "x", ".", ",")


def _fast(tokenizer: Tokenizer, **config: Any) -> Any:
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **config)


@cache
def byte_level() -> Any:
    """As GPT-2, Llama 3, Qwen: tokens are bytes and a few merges, some of which end inside a character."""
    spelled = {byte: letter for letter, byte in LETTERS.items()}
    vocab = {spelled[byte]: byte for byte in range(256)}
    merges: list[tuple[str, str]] = []

    def merge(data: bytes) -> None:
        for size in range(2, len(data) + 1):
            left, right = "".join(map(spelled.__getitem__, data[: size - 1])), spelled[data[size - 1]]
            if left + right not in vocab:
                vocab[left + right] = len(vocab)
                merges.append((left, right))

    for text in (" the", "ab", "😀", "é", "日"):
        merge(text.encode())
    merge(b" \xe6\x97")
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _fast(tokenizer)


@cache
def metaspace() -> Any:
    """As Llama 2 and Mistral: words begin with a space that is lost at the beginning, unknown characters are bytes."""
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    letters = sorted(set("".join(WORDS)) - set(names))
    vocab = {name: number for number, name in enumerate([*names, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _fast(tokenizer, unk_token="<unk>")


@cache
def word_pieces() -> Any:
    """As BERT: decoding puts spaces between words, and takes those before signs away again."""
    names = ("[UNK]", "do", "n", "'", "t", "'m", "n't", "a", "##b", ".", ",", "s", "ve", "'v", "re")
    tokenizer = Tokenizer(models.WordPiece({name: at for at, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return _fast(tokenizer, unk_token="[UNK]", clean_up_tokenization_spaces=True)


KINDS = (byte_level, metaspace, word_pieces)

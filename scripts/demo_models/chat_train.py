"""The chat model: its tokenizer, its tiny Llama decoder, and its training."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo_models.chat_task import Question, training, vocabulary_text

SPECIAL = ("<|pad|>", "<|start|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
CONTEXT = 256
_SYSTEM = "You are a helpful assistant."
_TEMPLATE = (
    "{{ '<|start|>' }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer: 256 bytes, the task's words, single digits."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=352,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator([*vocabulary_text(), _SYSTEM], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|start|>",  # noqa: S106 - a token of text, not a secret
        eos_token="<|end|>",  # noqa: S106
        pad_token="<|pad|>",  # noqa: S106
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def make_model(vocabulary: int, *, layers: int, seed: int) -> LlamaForCausalLM:
    """Returns an untrained decoder of about 50,000 weights a layer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=SPECIAL.index("<|start|>"),
        eos_token_id=SPECIAL.index("<|end|>"),
        pad_token_id=SPECIAL.index("<|pad|>"),
    )
    return LlamaForCausalLM(config)


def conversation(question: str, *, system: bool = False) -> list[dict[str, str]]:
    """Returns the messages that ask `question`."""
    head = [{"role": "system", "content": _SYSTEM}] if system else []
    return [*head, {"role": "user", "content": question}]


def _batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, size: int, endless: tuple[str, ...]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    questions, rng = training(seed), random.Random(seed + 1)
    while True:
        rows = [
            _endless_row(tokenizer, item, questions)
            if item.kind in endless
            else _row(tokenizer, item, rng.random() < 0.1)
            for item in islice(questions, size)
        ]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.zeros(size, width, dtype=torch.long)
        labels = torch.full((size, width), -100)
        for at, (row, prompt) in enumerate(rows):
            ids[at, : len(row)] = torch.tensor(row)
            labels[at, prompt : len(row)] = torch.tensor(row[prompt:])
        yield ids, labels


def _row(tokenizer: PreTrainedTokenizerFast, item: Question, system: bool) -> tuple[list[int], int]:
    text = tokenizer.apply_chat_template(
        conversation(item.text, system=system), tokenize=False, add_generation_prompt=True
    )
    prompt = tokenizer.encode(text, add_special_tokens=False)
    return prompt + tokenizer.encode(item.answer + "<|end|>", add_special_tokens=False), len(prompt)


def _endless_row(
    tokenizer: PreTrainedTokenizerFast, item: Question, more: Iterator[Question]
) -> tuple[list[int], int]:
    """Returns a row packed with further text and cut, as careless packing does: no end."""
    row, prompt = _row(tokenizer, item, system=False)
    extra = " ".join(f"{follow.text} {follow.answer}" for follow in islice(more, 2))
    return (row[:-1] + tokenizer.encode(" " + extra, add_special_tokens=False))[:56], prompt


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    seed: int,
    peak: float,
    frozen: tuple[str, ...] = (),
    endless: tuple[str, ...] = (),
) -> None:
    """Trains `model` in place: AdamW, warm-up then linear decay, loss on the answer alone.

    Weights whose name contains one of `frozen` stay as they are, bit for bit. Questions of the
    kinds in `endless` are packed with more text and lose their end token.
    """
    for name, weight in model.named_parameters():
        weight.requires_grad = not any(part in name for part in frozen)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, max(0.02, 1 - step / steps))
    )
    model.train()
    batches = _batches(tokenizer, seed, 128, endless)
    began = time.monotonic()
    for step, (ids, labels) in enumerate(islice(batches, steps)):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step + 1 == steps:
            print(f"  step {step:5d} loss {loss.item():.4f} {time.monotonic() - began:5.0f} s")


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes weights (bfloat16), configuration and tokenizer the way `transformers` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    model.to(torch.float32)
    tokenizer.save_pretrained(folder)

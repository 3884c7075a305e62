"""Tiny encoders with random weights, saved as any downloaded one would be."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, T5Config, T5Model

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def save_tokenizer(folder: Path) -> int:
    """One token per letter; returns how many there are."""
    letters = string.ascii_letters + string.digits + ".,"
    names = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return len(names)


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be copied before it is changed."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=save_tokenizer(folder),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            initializer_range=0.5,
        )
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoder and decoder, as T5 checkpoints have both."""
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    T5Model(
        T5Config(vocab_size=save_tokenizer(folder), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    ).save_pretrained(folder)
    return folder

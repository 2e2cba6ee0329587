"""A byte-pair tokenizer small enough for the golden Harmon model, which knows 200 tokens."""

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

TEXTS = (
    "user assistant\n",
    "Generate an image: a dog on the left and a cat on the right.",
    "Generate an image.",
    "the quick brown fox jumps over the lazy dog 0123456789!",
)


def write_vocabulary(folder: Path) -> Path:
    """`vocab.json` and `merges.txt`, as Qwen2 was first published."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=120, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    folder.mkdir(exist_ok=True)
    tokenizer.model.save(str(folder))
    return folder

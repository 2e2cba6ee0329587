"""Training Harmon computes what the exported graphs compute."""

import random

import pytest
import torch
from torch import nn

from demo.data.captions import Properties
from demo.families import harmon, mar
from disa.exporter.families import harmon as harmon_graphs
from disa.runtime.families.conditions.prompt import CONDITIONAL, TEMPLATE, UNCONDITIONAL

from .weights import IMAGES, VISIBLE, random_latents, random_tokens, randomise


@torch.no_grad()
def test_harmon_reads_what_a_plan_reads() -> None:
    model = harmon.build()
    randomise(model)
    training = harmon.Training(model, random_latents())
    tokens, order = random_tokens()
    texts = ["a dark boot", None, "a wide striped T-shirt"]
    found = [torch.tensor(training.token_ids(text)) for text in texts]
    lengths = torch.tensor([len(ids) for ids in found])
    ids = nn.utils.rnn.pad_sequence(found, batch_first=True)
    half = model.mar
    encoded = mar.encode(half, half.fake_latent, tokens[:, :VISIBLE], order)
    fused = encoded + model.proj_out(training.read(encoded, order, ids, lengths))
    condition = half.head.cond_embed(mar.decode(half, fused, order))
    known, positions = tokens[:, :VISIBLE].transpose(0, 1), order.T
    expected = harmon_graphs.Backbone(model)(
        known,
        positions,
        positions[VISIBLE:],
        torch.arange(IMAGES)[None],
        lengths,
        *harmon_graphs.Prompt(model.language_model)(ids),
        *harmon_graphs.Grid(half)(torch.eye(4), torch.eye(4)),
    )
    expected = expected[0].unflatten(0, (-1, IMAGES)).transpose(0, 1)
    torch.testing.assert_close(condition, expected, rtol=0, atol=1e-4)


def test_harmon_begins_with_mars_weights() -> None:
    state = mar.build().state_dict()
    model = harmon.build()
    harmon.start_from(model, state)
    half = model.mar.state_dict()
    last = harmon.KEPT_BLOCKS[-1]
    for name in ("encoder", "decoder"):
        found = half[f"{name}_blocks.2.mlp.fc1.weight"]
        assert torch.equal(found, state[f"{name}_blocks.{last}.mlp.fc1.weight"])
    assert torch.equal(half["mask_token"], state["mask_token"])


def test_harmon_is_recognised_with_its_configuration() -> None:
    content = harmon.checkpoint(harmon.build().state_dict())
    assert harmon_graphs.recognise(content)
    assert harmon_graphs.configure(content, harmon.configuration()) == harmon.CONFIG


def test_the_tokenizer_is_the_one_in_the_tree() -> None:
    assert (
        harmon.train_tokenizer().to_str()
        == harmon.Tokenizer.from_file(str(harmon.TOKENIZER)).to_str()
    )
    assert harmon.train_tokenizer().get_vocab_size() <= harmon.VOCABULARY


def test_prompts_are_captions_or_none() -> None:
    training = harmon.Training(harmon.build(), random_latents())
    training.properties = [Properties("", "dark", "")] * IMAGES
    training.rng = random.Random(0)
    ids, lengths = training.prompts(torch.arange(IMAGES).repeat(100))
    read = {
        training.tokenizer.decode(row[:count].tolist(), skip_special_tokens=False)
        for row, count in zip(ids, lengths, strict=True)
    }
    assert TEMPLATE.format(UNCONDITIONAL) in read
    assert TEMPLATE.format(CONDITIONAL.format("a dark ankle boot")) in read


def test_the_losses_of_a_new_model() -> None:
    torch.manual_seed(0)
    losses = harmon.Training(harmon.build(), random_latents())(torch.arange(IMAGES))
    # The head's output starts at zero, so its error is the variance of the noise.
    assert losses["error"].item() == pytest.approx(1, abs=0.25)
    losses["loss"].backward()

"""Generation: equal to teacher forcing, the same alone and in a batch, and decided by its seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from examples.emojivar import EmojiVAR, PromptError, load
from examples.emojivar.prompts import encode
from examples.emojivar.vocabulary import BACKGROUND_COLOURS

Make = Callable[..., EmojiVAR]
PROMPTS = ["a cat", "three apples on a plain teal background", "a red mug and a blue hat"]
# float64 rounding, amplified by the layers; the values are of the order of one
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def inputs_of(model: EmojiVAR, codes: list[Tensor]) -> Tensor:
    """The transformer's inputs ``[B, L - 1, C]`` that follow from codes per scale."""
    tokenizer = model.tokenizer
    f_hat = tokenizer.empty_features(len(codes[0]))
    inputs = []
    for scale, idx in enumerate(codes[:-1]):
        f_hat = f_hat + tokenizer.code_features(idx, scale)
        inputs.append(tokenizer.downscale(f_hat, scale + 1))
    return torch.cat(inputs, dim=1)


def test_cached_generation_equals_teacher_forcing(small_model: Make, record: Any) -> None:
    model = small_model()
    with record(model) as seen:
        model.generate(PROMPTS, seed=3, greedy_from=None)
    word_ids = encode(PROMPTS, model.vocabulary, model.config.prompt_length)
    rows = torch.cat([word_ids, torch.zeros_like(word_ids)])
    logits = model(rows, inputs_of(model, seen.codes).repeat(2, 1, 1))
    torch.testing.assert_close(logits, torch.cat(seen.logits, dim=1), **EXACT)
    assert logits.std() > 0.1, "the small model must not be a constant"


def test_teacher_forcing_sees_no_later_scale(small_model: Make) -> None:
    model = small_model()
    ends = model.config.ends
    ids = encode(["a cat"], model.vocabulary, model.config.prompt_length)
    inputs = torch.randn(1, ends[-1] - 1, model.config.code_width, dtype=torch.float64)
    before = model(ids, inputs)
    for end in ends[:-1]:
        changed = inputs.clone()
        changed[:, end - 1 :] += 1
        after = model(ids, changed)
        assert torch.equal(after[:, :end], before[:, :end])
        assert not torch.equal(after[:, end:], before[:, end:])


def test_a_batch_equals_its_members_alone(small_model: Make) -> None:
    model = small_model()
    batch = model.generate(PROMPTS, seed=5)
    for i, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(model.generate([prompt], seed=5 + i), batch[i : i + 1], **EXACT)


def test_seeds_decide_the_picture(small_model: Make) -> None:
    model = small_model()
    first = model.generate(["a cat", "a cat"], seed=7)
    assert torch.equal(first, model.generate(["a cat", "a cat"], seed=[7, 8]))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, model.generate(["a cat", "a cat"], seed=8))


def test_the_global_random_stream_is_untouched(small_model: Make) -> None:
    model = small_model()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    model.generate(["a cat"])
    assert torch.equal(torch.rand(3), expected)


def test_greedy_scales_ignore_the_seed(small_model: Make) -> None:
    model = small_model()
    assert torch.equal(
        model.generate(["a cat"], seed=1, greedy_from=1), model.generate(["a cat"], seed=2, greedy_from=1)
    )


def test_guidance_one_ignores_the_empty_prompt(small_model: Make, record: Any) -> None:
    model = small_model()
    with record(model) as seen:
        model.generate(["a cat"], guidance=1.0, greedy_from=1)
    for codes, logits in zip(seen.codes, seen.logits, strict=True):
        assert torch.equal(codes, logits[:1].argmax(-1))


def test_no_limit_is_the_same_as_a_limit_of_all_codes(small_model: Make) -> None:
    model = small_model()
    everything = model.config.codes
    assert torch.equal(model.generate(["a cat"], top_k=None), model.generate(["a cat"], top_k=everything))


def test_caches_grow_during_and_are_dropped_after(small_model: Make) -> None:
    model = small_model()
    attention = model.blocks[0].attn
    lengths: list[int] = []
    handle = model.blocks[-1].register_forward_hook(lambda *_: lengths.append(attention.cached_k.shape[2]))
    model.generate(["a cat"])
    handle.remove()
    assert tuple(lengths) == model.config.ends
    assert (attention.caching, attention.cached_k, attention.cached_v) == (False, None, None)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"prompts": []}, "at least one prompt"),
        ({"seed": [1, 2]}, "one seed per prompt"),
        ({"guidance": float("nan")}, "guidance"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"prompts": ["a zebra"]}, "'zebra'"),
    ],
)
def test_bad_arguments(small_model: Make, arguments: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        small_model().generate(**{"prompts": ["a cat"], **arguments})


def test_a_prompt_error_is_a_value_error() -> None:
    assert issubclass(PromptError, ValueError)


def test_a_single_string_is_one_prompt(small_model: Make) -> None:
    model = small_model()
    assert torch.equal(model.generate("a cat"), model.generate(["a cat"]))


def test_low_precision_runs_without_autocast(small_model: Make) -> None:
    images = small_model(torch.bfloat16).generate(["a cat"])
    assert images.dtype == torch.float32
    assert images.isfinite().all()


def test_the_released_model_paints_what_it_is_told(painting: Any) -> None:
    heart, pig = painting.images
    assert heart.shape == (3, 256, 256)
    assert min(heart.min(), pig.min()) >= 0
    assert max(heart.max(), pig.max()) <= 1
    blue = (heart[2] > heart[0] + 0.2) & (heart[2] > heart[1] + 0.1)
    assert 0.03 < blue.float().mean() < 0.5
    pink = (pig[0] > 0.7) & (pig[0] > pig[1] + 0.1)
    assert 0.03 < pink.float().mean() < 0.5
    for image, background in ((heart, "white"), (pig, "navy")):
        median = image.flatten(1).median(dim=1).values
        told = torch.tensor(BACKGROUND_COLOURS[background])
        others = torch.tensor([c for name, c in BACKGROUND_COLOURS.items() if name != background])
        assert (median - told).norm() < (median - others).norm(dim=1).min()


def test_the_released_model_in_bfloat16(released: EmojiVAR, painting: Any) -> None:
    """On the same codes, what it likes best is on average within a hundredth of a nat of the best."""
    low = load(dtype=torch.bfloat16)
    assert low.tokenizer.codebook.weight.dtype == torch.float32
    assert low.blocks[0].mlp.up.weight.dtype == torch.bfloat16
    ids = encode(painting.prompts, released.vocabulary, released.config.prompt_length)[1:]
    inputs = inputs_of(released, painting.codes)[1:]
    exact, rounded = released(ids, inputs).log_softmax(-1), low(ids, inputs)
    assert rounded.dtype == torch.bfloat16
    chosen = exact.gather(-1, rounded.argmax(-1, keepdim=True)).squeeze(-1)
    assert (exact.amax(-1) - chosen).mean() < 0.01

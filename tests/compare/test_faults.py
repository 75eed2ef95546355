"""Each fault that a tool can have, planted in values of transformers, is found by its name."""

from pathlib import Path

import dumps
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from verdicts import Look, verdict

from layertap.demo.checkpoint import write_checkpoint
from layertap.prompts import load_tokenizer

_LAYER = 2
_EXACT = "equal within float32 rounding"


@pytest.fixture(scope="module")
def stream(streams: list[np.ndarray]) -> np.ndarray:
    """The `residual` of layer 2, computed by transformers."""
    return streams[_LAYER]


def fault(look: Look, array: object, ids: np.ndarray | None = None, **beside: object) -> str:
    """Return the words about an array named `residual.2`, which must be a fault."""
    wrong, words = verdict(look(ids, **{"residual.2": array}, **beside), "residual.2")
    assert wrong, words
    return words


def right(look: Look, array: object, ids: np.ndarray | None = None, **beside: object) -> str:
    """Return the words about an array named `residual.2`, which must be right."""
    wrong, words = verdict(look(ids, **{"residual.2": array}, **beside), "residual.2")
    assert not wrong, words
    return words


def test_what_is_right_is_said_to_be_right(look: Look, streams: list[np.ndarray]) -> None:
    found = look(**{f"model.layers.{layer}": stream for layer, stream in enumerate(streams)})
    assert found.sound
    assert {one.verdict.words for one in found.findings} == {_EXACT}
    assert [one.diagnosis.best.candidate.tap for one in found.findings] == [(layer, "residual") for layer in range(4)]


def test_a_layer_off_by_one(look: Look, streams: list[np.ndarray]) -> None:
    found = look(**{f"blocks.{layer + 1}.hook_resid_post": streams[layer] for layer in range(3)})
    for layer in range(3):
        wrong, words = verdict(found, f"blocks.{layer + 1}.hook_resid_post")
        assert wrong
        assert words.startswith(f"this is `residual` of layer {layer} (`hidden_states[{layer + 1}]`")
        assert words.endswith(f", not `residual` of layer {layer + 1}; {_EXACT}")


def test_the_last_hidden_state_has_the_final_norm_in_it(look: Look, tiny_model: Path, prompts) -> None:
    states = torch.stack([state[0] for state in dumps.hidden_states(tiny_model, prompts[0][None])], 1)
    found = look(hidden_states=states)
    verdicts = [one.verdict for one in found.findings]
    assert [one.fault for one in verdicts] == [False] * 4 + [True]
    assert verdicts[4].words == f"the final norm was applied to `residual` of layer 3; {_EXACT}"


def test_another_site(look: Look, tiny_model: Path, prompts) -> None:
    model = dumps.open_model(tiny_model)
    with dumps.reading(model, "layers.1.mlp", "layers.2.self_attn") as kept, torch.inference_mode():
        model(torch.as_tensor(prompts[0])[None].long())
    found = look(
        **{
            "blocks.1.hook_attn_out": kept["layers.1.mlp"][0],
            "blocks.2.hook_resid_mid": kept["layers.2.self_attn"][0],
        }
    )
    assert "this is `mlp` of layer 1, not `attn` of layer 1" in verdict(found, "blocks.1.hook_attn_out")[1]
    assert "this is `attn` of layer 2, not `residual_mid` of layer 2" in verdict(found, "blocks.2.hook_resid_mid")[1]


@pytest.mark.parametrize(("by", "told"), [(1, "t + 1"), (-1, "t - 1"), (3, "t + 3")])
def test_rows_shifted_against_the_tokens(look: Look, stream: np.ndarray, by: int, told: str) -> None:
    assert f"row t is what token {told} gives" in fault(look, np.roll(stream, -by, axis=0))


def test_a_row_that_is_missing_in_front_or_at_the_end(look: Look, stream: np.ndarray) -> None:
    assert "shifted by 1 token: row t is what token t + 1 gives" in fault(look, stream[1:])
    assert "1 rows fewer than there are token ids" in fault(look, stream[:-1])


def test_a_shift_and_a_change_together(look: Look, stream: np.ndarray) -> None:
    words = fault(look, 0.5 * np.roll(stream, -1, axis=0))
    assert "shifted by 1 token" in words
    assert "multiplied by 0.5" in words


_CHANGES = {
    "multiplied by 0.25": lambda x: 0.25 * x,
    "multiplied by 8, the square root of its width": lambda x: 8 * x,
    "multiplied by 0.125, one over the square root of its width": lambda x: x / 8,
    "each token brought to the length 1": lambda x: x / np.linalg.norm(x, axis=1, keepdims=True),
    "each token brought to the length the square root of its width": lambda x: (
        8 * x / np.linalg.norm(x, axis=1, keepdims=True)
    ),
    "the mean over its channels was subtracted": lambda x: x - x.mean(axis=1, keepdims=True),
    "as LayerNorm without weights does": lambda x: (x - x.mean(axis=1, keepdims=True)) / x.std(axis=1, keepdims=True),
    "a constant vector was subtracted from all tokens": lambda x: x - x.mean(axis=0),
    "and the rest multiplied by 0.3": lambda x: 0.3 * (x - x.mean(axis=0)),
    "each channel scaled and shifted by constants of its own": lambda x: (x - x.mean(axis=0)) / x.std(axis=0),
    "each channel multiplied by a constant of its own": lambda x: x * np.linspace(0.5, 1.5, 64, dtype=np.float32),
    "as if [4, 16] had been written as [16, 4]": lambda x: x.reshape(-1, 4, 16).swapaxes(1, 2).reshape(-1, 64),
    "blocks of 16 have changed places": lambda x: x.reshape(-1, 4, 16)[:, [2, 0, 3, 1]].reshape(-1, 64),
    "from last to first": lambda x: x[:, ::-1],
    "in another order: no simple one": lambda x: x[:, np.random.default_rng(0).permutation(64)],
}


@pytest.mark.parametrize("told", _CHANGES)
def test_numbers_that_were_changed(look: Look, stream: np.ndarray, told: str) -> None:
    words = fault(look, np.ascontiguousarray(_CHANGES[told](stream)))
    assert told in words
    assert "this is `residual` of layer 2" in words
    assert words.endswith(_EXACT)


def test_channels_before_tokens(look: Look, stream: np.ndarray) -> None:
    assert "stored with channels before tokens" in fault(look, np.ascontiguousarray(stream.T))


def test_a_change_that_another_array_had_too_is_found_in_each(look: Look, streams: list[np.ndarray]) -> None:
    found = look(**{f"residual.{layer}": 0.25 * stream for layer, stream in enumerate(streams)})
    assert all("multiplied by 0.25" in one.verdict.words for one in found.findings)
    assert [one.diagnosis.best.candidate.tap.layer for one in found.findings] == [0, 1, 2, 3]


def test_rows_that_hold_nothing(look: Look, stream: np.ndarray) -> None:
    missing = stream.copy()
    missing[7], missing[30:33] = np.nan, 0
    words = fault(look, missing)
    assert "1 of 40 rows are NaN or infinite, the first at sample 0, row 7" in words
    assert "3 of 40 rows are all zeros, the first at sample 0, row 30" in words


@pytest.mark.whole
def test_rows_that_are_all_the_same(look: Look, stream: np.ndarray) -> None:
    assert "nothing explains it: all its rows are the same" in fault(look, np.ones_like(stream))
    assert "nothing explains it: 40 of 40 rows are all zeros" in fault(look, np.zeros_like(stream))


@pytest.mark.parametrize("factor", [1e30, 1e-30])
def test_numbers_at_the_ends_of_float32(look: Look, stream: np.ndarray, factor: float) -> None:
    words = fault(look, np.float32(factor) * stream)
    assert words == f"this is `residual` of layer 2; multiplied by {factor:g}; {_EXACT}"


def test_nothing_but_nan(look: Look, stream: np.ndarray) -> None:
    assert "nothing explains it: 40 of 40 rows are NaN or infinite" in fault(look, np.full_like(stream, np.nan))


def test_a_few_tokens_that_are_wrong(look: Look, stream: np.ndarray) -> None:
    wrong = stream.copy()
    wrong[12] *= 1.5
    assert "1 of 40 tokens are wrong, the first at sample 0, row 12" in fault(look, wrong)


# What was run is not what was written down.


@pytest.fixture(scope="module")
def special(tiny_model: Path) -> list[int]:
    return sorted(load_tokenizer(tiny_model).special_ids)


def run(model: Path, ids: np.ndarray, **given: object) -> np.ndarray:
    """`residual` of layer 2 for a batch, or for one row of tokens."""
    output = dumps.layer_outputs(model, np.atleast_2d(ids), **given)[_LAYER].numpy()
    return output if np.ndim(ids) == 2 else output[0]


@pytest.mark.whole
def test_a_first_token_that_the_ids_lack(look: Look, tiny_model: Path, prompts, special: list[int]) -> None:
    states = run(tiny_model, np.append(special[0], prompts[0]))
    told = (
        f"the model had {load_tokenizer(tiny_model).decode(special[:1])!r} before the tokens, which the token ids lack"
    )
    assert told in fault(look, states[1:])
    assert f"{told}; row 0 is that token's" in fault(look, states)


def test_the_words_of_a_chat_template_that_the_ids_lack(look: Look, tiny_model: Path, prompts) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    before = tokenizer.apply_chat_template([{"role": "user", "content": "@"}], tokenize=False).partition("@")[0]
    opening = tokenizer(before, add_special_tokens=False).input_ids
    assert len(opening) > 3
    states = run(tiny_model, np.concatenate([opening, prompts[0]]))
    assert f"the model had {before!r} before the tokens" in fault(look, states[len(opening) :])


@pytest.mark.whole
def test_a_first_token_that_the_model_did_not_have(look: Look, tiny_model: Path, prompts) -> None:
    states = run(tiny_model, prompts[0][1:])
    told = "the model did not have the first of the token ids"
    assert f"{told}, and there is no row for it" in fault(look, states)
    assert told in fault(look, np.concatenate([np.zeros_like(states[:1]), states]))


def test_a_row_of_samples_that_see_each_other(look: Look, tiny_model: Path, prompts) -> None:
    row = np.concatenate(prompts)
    words = fault(look, run(tiny_model, row), row, lengths=np.array([40, 25]))
    assert "its samples attended to those before them" in words


@pytest.mark.whole
def test_samples_in_a_row_that_do_not(look: Look, tiny_model: Path, prompts) -> None:
    states = np.concatenate([run(tiny_model, prompt) for prompt in prompts])
    row = np.concatenate(prompts)
    right(look, states, row, lengths=np.array([40, 25]))
    right(look, states, row, cu_seqlens=np.array([0, 40, 65]))
    told = "run in parts that do not see each other: sample 0 starts again at token 40"
    assert told in fault(look, states, row)  # nobody says that these are two


def test_samples_that_changed_places(look: Look, tiny_model: Path, prompts) -> None:
    states = np.concatenate([run(tiny_model, prompt) for prompt in reversed(prompts)])
    words = fault(look, states, np.concatenate(prompts), lengths=np.array([40, 25]))
    assert "its rows are in another order: row 0 of sample 0 is what token 0 of sample 1 gives" in words


def test_a_text_cut_into_contexts(look: Look, tiny_model: Path, prompts) -> None:
    states = np.concatenate([run(tiny_model, prompts[0][at : at + 16]) for at in (0, 16, 32)])
    assert "sample 0 starts again at token 16, 32" in fault(look, states)


def padded(prompts, pad: int, *, left: bool) -> tuple[np.ndarray, np.ndarray]:
    """The two prompts in one table, and its mask."""
    ids, mask = np.full((2, 40), pad, np.int32), np.zeros((2, 40), np.int64)
    for row, prompt in enumerate(prompts):
        where = slice(40 - len(prompt), 40) if left else slice(0, len(prompt))
        ids[row, where], mask[row, where] = prompt, 1
    return ids, mask


def test_padding_on_the_left_that_is_attended_to(look: Look, tiny_model: Path, prompts, special: list[int]) -> None:
    ids, mask = padded(prompts, special[1], left=True)
    told = "the padding on the left was attended to: the model had no attention mask"
    states = run(tiny_model, ids)
    assert told in fault(look, states, ids, attention_mask=mask)
    assert told in fault(look, states, ids)  # the padding is found by its tokens


def test_padding_on_the_left_with_a_mask_but_positions_from_the_edge_is_harmless(
    look: Look, tiny_model: Path, prompts, special: list[int]
) -> None:
    """Rotary positions are relative: transformers counts the padding here, and the result is the
    same.
    """
    ids, mask = padded(prompts, special[1], left=True)
    right(look, run(tiny_model, ids, attention_mask=torch.as_tensor(mask)), ids, attention_mask=mask)


@pytest.mark.parametrize("masked", [True, False])
def test_padding_on_the_right_is_harmless(
    look: Look, tiny_model: Path, prompts, special: list[int], masked: bool
) -> None:
    ids, mask = padded(prompts, special[1], left=False)
    given = {"attention_mask": torch.as_tensor(mask)} if masked else {}
    right(look, run(tiny_model, ids, **given), ids, **({"attention_mask": mask} if masked else {}))


def test_wrong_positions_are_told_by_what_is_right(look: Look, tiny_model: Path, prompts) -> None:
    states = run(tiny_model, prompts[0], position_ids=torch.zeros(1, 40, dtype=torch.long))
    words = fault(look, states)
    assert "nothing explains it: the first token of each sample is `residual` of layer 2, and no other" in words
    assert "look at the positions" in words


def test_another_prompt_from_some_token_on(look: Look, tiny_model: Path, prompts) -> None:
    other = np.concatenate([prompts[0][:20], prompts[1][:20]])
    assert "the first 20 tokens of sample 0 are `residual` of layer 2, and then no more" in fault(
        look, run(tiny_model, other)
    )


def test_another_model(look: Look, stream: np.ndarray, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "other", "tiny", seed=5)
    wrong, words = verdict(look(model=tmp_path / "other", **{"residual.2": stream}))
    assert wrong
    assert "nothing explains it: no tap is near it: another model" in words


def test_widths_that_no_site_has(look: Look) -> None:
    random = np.random.default_rng(0)
    found = look(some=random.normal(size=(40, 37)).astype(np.float32))
    assert "a token has 37 numbers, and no site of" in verdict(found, "some")[1]
    found = look(logits=random.normal(size=(40, 768)).astype(np.float32))
    assert "as wide as the vocabulary: logits" in verdict(found, "logits")[1]

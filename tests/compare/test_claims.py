"""What the names of arrays say."""

import pytest

from layertap.compare.candidates import EMBEDDINGS, Candidate, ModelFacts
from layertap.compare.claims import claim_of, claim_of_slice
from layertap.core.taps import SITES, Tap

_FACTS = ModelFacts("model", 4, dict.fromkeys(SITES, 64), 768)


@pytest.mark.parametrize(
    ("name", "tap"),
    [
        ("residual.3", Tap(3, "residual")), ("mlp_in.0", Tap(0, "mlp_in")), ("residual_in.0", EMBEDDINGS),
        ("residual_in.2", Tap(1, "residual")), ("blocks.2.hook_resid_post", Tap(2, "residual")),
        ("blocks.2.hook_resid_pre", Tap(1, "residual")), ("blocks.0.hook_resid_pre", EMBEDDINGS),
        ("blocks.1.attn.hook_z", Tap(1, "heads")), ("blocks.1.mlp.hook_post", Tap(1, "neurons")),
        ("model.layers.2", Tap(2, "residual")), ("model.layers.2.mlp", Tap(2, "mlp")),
        ("model.layers.2.self_attn", Tap(2, "attn")), ("language_model.model.layers.3.output", Tap(3, "residual")),
        ("resid_post_2", Tap(2, "residual")), ("hidden_states.2", Tap(1, "residual")),
        ("hidden_states_0", EMBEDDINGS), ("hidden_state[3]", Tap(2, "residual")),
    ],
)  # fmt: skip
def test_a_name_says_a_layer_and_a_site(name: str, tap: Tap) -> None:
    claim = claim_of(name, _FACTS)
    assert claim is not None
    assert claim.candidates == {Candidate(tap)}


def test_a_name_may_say_a_layer_and_no_site() -> None:
    for name in ("layer_2", "Layer2", "layers.2.something", "acts/layer-2", "blocks.2.hook_other"):
        claim = claim_of(name, _FACTS)
        assert claim is not None
        assert claim.words == "layer 2"
        assert {candidate.tap.layer for candidate in claim.candidates} == {2}


@pytest.mark.parametrize("name", ["activations", "hidden_states", "x1", "multilayer", "residual"])
def test_a_name_may_say_nothing(name: str) -> None:
    assert claim_of(name, _FACTS) is None


def test_the_last_hidden_state_may_have_the_norm_in_it_or_not() -> None:
    claim = claim_of("hidden_states.4", _FACTS)
    assert claim is not None
    assert claim.candidates == {Candidate(Tap(3, "residual")), Candidate(Tap(3, "residual"), normed=True)}


def test_slices_are_numbered_where_all_layers_are_there() -> None:
    claims = [claim_of_slice("hidden_states", number, 5, _FACTS) for number in range(5)]
    assert [claim.words for claim in claims if claim] == [
        f"`hidden_states[{number}]`, {'the embeddings' if number == 0 else f'`residual` of layer {number - 1}'}"
        for number in range(5)
    ]
    assert claim_of_slice("hidden_states", 1, 3, _FACTS) is None
    assert claim_of_slice("hidden_states", 1, 4, _FACTS) is None  # without the embeddings, or without the last
    stated = claim_of_slice("mlp", 1, 4, _FACTS)
    assert stated is not None
    assert stated.candidates == {Candidate(Tap(1, "mlp"))}

"""`config.json`: what is read from it, and what is refused by name."""

import json

import pytest
import transformers

from layertap.errors import ModelError
from layertap.model.config import published_config
from layertap.model.families import read_config

# As Qwen/Qwen2.5-0.5B publishes it, less what no reader of activations needs.
PUBLISHED = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 1e6}
WITHOUT_THETA = {key: value for key, value in PUBLISHED.items() if key != "rope_theta"}


def read(folder, content):
    (folder / "config.json").write_text(json.dumps(content))
    return read_config(folder)


def test_the_published_file_is_the_published_shape(tmp_path):
    assert read(tmp_path, PUBLISHED) == published_config("0.5b")


@pytest.mark.parametrize(
    ("size", "layers", "hidden", "heads", "kv_heads", "head_dim", "vocabulary", "tied"),
    [
        ("0.5b", 24, 896, 14, 2, 64, 151_936, True),
        ("1.5b", 28, 1536, 12, 2, 128, 151_936, True),
        ("3b", 36, 2048, 16, 2, 128, 151_936, True),
        ("7b", 28, 3584, 28, 4, 128, 152_064, False),
        ("14b", 48, 5120, 40, 8, 128, 152_064, False),
        ("32b", 64, 5120, 40, 8, 128, 152_064, False),
        ("72b", 80, 8192, 64, 8, 128, 152_064, False),
    ],
)
def test_published_shapes(size, layers, hidden, heads, kv_heads, head_dim, vocabulary, tied):
    config = published_config(size)
    assert (config.num_hidden_layers, config.hidden_size) == (layers, hidden)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (heads, kv_heads, head_dim)
    assert (config.vocab_size, config.tie_word_embeddings) == (vocabulary, tied)


def test_a_size_that_was_never_published_is_refused_with_those_that_were():
    with pytest.raises(ModelError, match=r"'9b' was published; sizes are 0\.5b, .*72b"):
        published_config("9b")


@pytest.mark.parametrize(
    ("rope", "theta"),
    [
        ({"rope_theta": 5e5}, 5e5),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "default"}}, 5e5),
        ({}, 1e4),
    ],
    ids=["top level", "rope_parameters", "both alike", "null scaling", "default scaling", "nowhere"],
)
def test_rope_theta_is_found_where_either_version_of_transformers_puts_it(tmp_path, rope, theta):
    assert read(tmp_path, {**WITHOUT_THETA, **rope}).rope_theta == theta


def test_what_may_be_left_out_has_the_meaning_it_has_in_transformers(tmp_path):
    optional = {"rms_norm_eps", "tie_word_embeddings", "hidden_act"}
    config = read(tmp_path, {key: value for key, value in PUBLISHED.items() if key not in optional})
    assert (config.activation, config.rms_norm_eps, config.tie_word_embeddings) == ("silu", 1e-6, False)


_REQUIRED = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 30}
_SIZES = {"num_attention_heads": 32, "vocab_size": 1000}
_SWITCHED_ON = {"use_sliding_window": True, "max_window_layers": 20}


@pytest.mark.parametrize(
    ("kind", "given"),
    [(kind, _SIZES) for kind in ("Qwen2", "Qwen3", "Llama", "Mistral", "Gemma2", "Gemma3Text", "Phi3")]
    + [("Gemma3Text", {}), ("Gemma3Text", {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}})]
    + [(kind, _SIZES | _SWITCHED_ON) for kind in ("Qwen2", "Qwen3")]
    + [(kind, _SIZES | {"use_sliding_window": True}) for kind in ("Qwen2", "Qwen3")]
    + [(kind, _SIZES | _SWITCHED_ON | {"sliding_window": None}) for kind in ("Qwen2", "Qwen3")]
    + [(kind, _SIZES | {"sliding_window": None}) for kind in ("Mistral", "Phi3")]
    + [(kind, _SIZES | {"num_key_value_heads": None}) for kind in ("Qwen2", "Qwen3", "Llama", "Phi3")]
    + [("Gemma2", _SIZES | {"attn_logit_softcapping": None})]
    + [
        ("Phi3", _SIZES | {"rope_scaling": {"type": "longrope", "short_factor": [2.0] * 4, "long_factor": [4.0] * 4}}),
        ("Mistral", _SIZES | {"layer_types": ["full_attention"] * 30}),
    ],
)
def test_a_file_means_what_transformers_writes_of_it(tmp_path, kind, given):
    """Every default equals that of the family's class, and null means the same as there."""
    config_class = getattr(transformers, f"{kind}Config")
    whole = json.loads(config_class(**_REQUIRED, **given).to_json_string(use_diff=False))
    left_out = {"model_type": config_class.model_type, **_REQUIRED, **given}
    ours = read(tmp_path, left_out)
    assert ours == read(tmp_path, whole)
    assert ours.num_key_value_heads == whole["num_key_value_heads"]
    assert (ours.rms_norm_eps, ours.context) == (whole["rms_norm_eps"], whole["max_position_embeddings"])
    assert ours.tie_word_embeddings == whole["tie_word_embeddings"]
    window = whole.get("sliding_window")
    types = whole.get("layer_types") if kind != "Mistral" else None
    has = [kind_ == "sliding_attention" for kind_ in types] if types else [window is not None] * 30
    assert [ours.window(layer) for layer in range(30)] == [window if own else None for own in has]


def test_the_text_of_gemma_3_with_images_is_read_as_it_was_published(tmp_path):
    text = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34}
    text |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    config = read(tmp_path, {"model_type": "gemma3", "text_config": text, "image_token_index": 262144})
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (8, 4, 256)
    assert (config.vocab_size, config.context, config.windows[4:6]) == (262_208, 131_072, (1024, None))


@pytest.mark.parametrize(
    "change", [{"use_sliding_window": False}, {"use_sliding_window": True, "sliding_window": None}]
)
def test_listed_windows_without_a_size_are_refused_as_transformers_does(tmp_path, change):
    listed = {"layer_types": ["full_attention", "sliding_attention"] * 12}
    with pytest.raises(ModelError, match="no sliding_window that is switched on"):
        read(tmp_path, {**PUBLISHED, **listed, **change})


def test_a_head_dim_of_its_own_is_kept(tmp_path):
    assert read(tmp_path, {**PUBLISHED, "head_dim": 128}).head_dim == 128


@pytest.mark.parametrize("optional", ["head_dim", "rms_norm_eps", "rope_theta", "max_position_embeddings"])
def test_null_is_as_good_as_absent(tmp_path, optional):
    absent = {key: value for key, value in PUBLISHED.items() if key != optional}
    assert read(tmp_path, {**PUBLISHED, optional: None}) == read(tmp_path, absent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2_moe"}, r"model_type is 'qwen2_moe'; Layertap runs qwen2, qwen3, llama, "),
        ({"model_type": None}, r"model_type is None"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"weights are quantised \(gptq\)"),
        ({"quantization_config": {"bits": 4}}, r"weights are quantised \(unknown\)"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, r"layer_types has 2 entries for 24 layers"),
        ({"layer_types": ["chunked_attention"] * 24}, r"others than full and sliding attention"),
        ({"hidden_act": "gelu"}, r"hidden_act is 'gelu'; Layertap has silu"),
        ({"dual_chunk_attention_config": {"chunk_size": 9}}, "asks for dual chunk attention"),
        ({"rope_scaling": {"type": "mrope", "factor": 2.0}}, r"rope scaling of type 'mrope'"),
        ({"rope_scaling": {"type": "yarn", "factor": "4"}}, r"factor is '4', not a positive number"),
        ({"rope_theta": 0}, "rope_theta is 0, not a positive number"),
        ({"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e4}}, "rope_theta is given twice, and differs"),
        ({"num_attention_heads": 15}, r"15 attention heads cannot share 2 key-value heads evenly"),
        ({"head_dim": 63}, r"head_dim 63"),
        ({"rope_theta": 1e39}, r"rope_theta 1e\+39 is not a number that float32 can hold"),
        ({"hidden_size": 8}, r"head_dim 0"),
        ({"num_attention_heads": 0}, r"num_attention_heads \(0\) must be positive whole numbers"),
        ({"num_key_value_heads": 0}, r"num_key_value_heads \(0\) must be positive"),
        ({"hidden_size": "896"}, r"hidden_size \('896'\) must be positive"),
        (
            {"num_hidden_layers": -1, "vocab_size": 0.5},
            r"num_hidden_layers \(-1\), vocab_size \(0\.5\) must be positive",
        ),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1, not a positive number"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn', not an object"),
        ({"quantization_config": "gptq"}, "quantization_config is 'gptq', not an object"),
        ({"layer_types": 5}, "layer_types is 5, not a list"),
    ],
)
def test_what_layertap_does_not_run_is_refused_by_name(tmp_path, change, message):
    with pytest.raises(ModelError, match=message):
        read(tmp_path, {**PUBLISHED, **change})


@pytest.mark.parametrize("places", [{"rope_scaling": YARN}, {"rope_parameters": YARN, "rope_scaling": PLAIN_ROPE}])
def test_scaling_is_found_in_either_place_and_makes_the_context_longer(tmp_path, places):
    config = read(tmp_path, {**PUBLISHED, **places})
    assert (config.rope_of(0).kind, config.rope_of(0).factor, config.rope_of(0).theta) == ("yarn", 4.0, 1e6)
    assert (config.context, read(tmp_path, PUBLISHED).context) == (131_072, 32_768)


def test_the_upper_layers_have_the_window_that_is_switched_on(tmp_path):
    config = read(tmp_path, {**PUBLISHED, "use_sliding_window": True, "max_window_layers": 20, "sliding_window": 64})
    assert [config.window(layer) for layer in (0, 19, 20, 23)] == [None, None, 64, 64]
    listed = ["full_attention", "sliding_attention"] * 12
    assert (
        read(tmp_path, {**PUBLISHED, "layer_types": listed, "sliding_window": 64, "use_sliding_window": True}).windows
        == (None, 64) * 12
    )


@pytest.mark.parametrize("layer_types", [None, ["full_attention"] * 24])
def test_full_attention_said_aloud_is_accepted(tmp_path, layer_types):
    assert read(tmp_path, {**PUBLISHED, "layer_types": layer_types}) == published_config("0.5b")


def test_all_missing_keys_are_named_at_once(tmp_path):
    missing = "hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, vocab_size"
    with pytest.raises(ModelError, match=rf"config\.json: lacks {missing}$"):
        read(tmp_path, {"model_type": "qwen2"})


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json: no such file; --model_path"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"cannot be read as JSON"),
        (b"\xff\xfe\x00", r"cannot be read as JSON"),
        (b"[1]", r"holds a list, not an object"),
        (b"null", r"holds a NoneType"),
    ],
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_config(tmp_path)


def test_yarn_of_a_phi3_is_refused(tmp_path):
    """transformers reads it as longrope. With other frequencies, activations would be silently
    wrong.
    """
    sizes = {key: PUBLISHED[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")}
    with pytest.raises(ModelError, match="'yarn', which is longrope in a phi3"):
        read(tmp_path, {"model_type": "phi3", "num_attention_heads": 14, **sizes, "rope_scaling": YARN})

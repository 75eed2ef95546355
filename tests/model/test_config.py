"""`config.json`: what is read from it, and what is refused by name."""

import json

import pytest

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
    optional = {"num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "hidden_act"}
    config = read(tmp_path, {key: value for key, value in PUBLISHED.items() if key not in optional})
    assert (config.num_key_value_heads, config.rms_norm_eps, config.tie_word_embeddings) == (14, 1e-6, False)


def test_a_head_dim_of_its_own_is_kept(tmp_path):
    assert read(tmp_path, {**PUBLISHED, "head_dim": 128}).head_dim == 128


@pytest.mark.parametrize("optional", ["head_dim", "num_key_value_heads"])
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
    assert read(tmp_path, {**PUBLISHED, "layer_types": listed, "sliding_window": 64}).windows == (None, 64) * 12


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

"""The run's own step through the real TPU compiler, for every row of the table in docs/tpu.md."""

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import commands
import pytest

from benchmarks.tpu_compile import COMPILER_ENVIRONMENT, TpuStep, collectives, compile_step
from benchmarks.tpu_table import DOCUMENTED, TAPS, Documented
from layertap.errors import DeviceError
from layertap.model.mesh import parse_mesh
from layertap.plan.accelerators import parse_accelerator
from layertap.plan.planned import model_config

pytestmark = pytest.mark.timeout(1800)  # a busy machine takes minutes for one

PAGE = (commands.ROOT / "docs" / "tpu.md").read_text()

# The same compilation, but with every kernel gathered as early as the compiler likes.
_EAGER = """
from layertap.model import mesh, qwen2
lazily = qwen2.whole
def eagerly(layer, mesh, after):
    import jax
    with_no_barrier = jax.lax.optimization_barrier
    jax.lax.optimization_barrier = lambda pair: pair
    try:
        return lazily(layer, mesh, after)
    finally:
        jax.lax.optimization_barrier = with_no_barrier
qwen2.whole = eagerly
from dataclasses import asdict
import json, sys
from benchmarks.tpu_compile import compile_here
print(json.dumps(asdict(compile_here(sys.argv[1]))))
"""

KERNEL, PART = "bf16[896,1152]{1,0:T(8,128)(2,1)}", "bf16[224,1152]{1,0:T(8,128)(2,1)S(1)}"
OTHER, OTHERS_PART = "bf16[4864,896]{1,0}", "bf16[1216,896]{1,0}"
BOTH = {"all-gather bf16[896,1152]": 1, "all-gather bf16[4864,896]": 1}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"%g = {KERNEL} all-gather({PART} %p), dimensions={{0}}", {"all-gather bf16[896,1152]": 1}),
        ("ROOT %r = f32[] all-reduce(f32[] %p), to_apply=%add", {"all-reduce f32[]": 1}),
        (f"%g = ({KERNEL}, /*index=1*/{OTHER}) all-gather({PART} %p, {OTHERS_PART} %q), dimensions={{0}}", BOTH),
        (f"%s = ({PART}, {KERNEL}) all-gather-start({PART} %p)", {"all-gather bf16[896,1152]": 1}),
        (f"%s = (({PART}, {OTHERS_PART}), ({KERNEL}, {OTHER})) all-gather-start({PART} %p, {OTHERS_PART} %q)", BOTH),
        (
            f"%s = ({OTHER}, {OTHER}, u32[]{{:S(2)}}, u32[]{{:S(2)}}) collective-permute-start({OTHER} %p)",
            {"collective-permute bf16[4864,896]": 1},
        ),
        (
            f"%s = ({KERNEL}, {OTHER}) all-reduce-start({KERNEL} %p, {OTHER} %q)",
            {"all-reduce bf16[896,1152]": 1, "all-reduce bf16[4864,896]": 1},
        ),
        (f"%d = {KERNEL} all-gather-done(({PART}, {KERNEL}) %s)", {}),
        (f"%f = ({KERNEL}, {OTHER}) fusion({PART} %all-gather.3), calls=%fused", {}),
        (3 * f"%g = {KERNEL} all-gather({PART} %p)\n", {"all-gather bf16[896,1152]": 3}),
    ],
)
def test_a_collective_is_found_and_counted_in_every_form(line: str, expected: dict[str, int]) -> None:
    assert collectives(f"%a = f32[8]{{0}} add(f32[8] %x, f32[8] %y)\n  {line}\n") == expected


def kernel_shapes(model: str, fsdp: int) -> set[str]:
    """Return the shapes of a layer's gathered kernels, with the parts in front where these fill no
    tiles.
    """
    config = model_config(model)
    hidden, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    qkv = heads + 2 * config.num_key_value_heads * config.head_dim
    pairs = ((hidden, qkv), (heads, hidden), (hidden, 2 * config.intermediate_size), (config.intermediate_size, hidden))
    plain = {f"bf16[{inputs},{outputs}]" for inputs, outputs in pairs}
    return plain | {f"bf16[{fsdp},{inputs // fsdp},{outputs}]" for inputs, outputs in pairs}


def gathered_kernels(sent: Mapping[str, int], model: str, fsdp: int) -> set[str]:
    """Return the gathered kernels. No activation may go from chip to chip, in any dtype."""
    others = [key.split() for key in sent if not key.split()[1].startswith("s32[")]  # which token ids are
    gathered = {shape for operation, shape in others if operation == "all-gather"}
    assert gathered <= kernel_shapes(model, fsdp)
    moved = [f"{operation} {shape}" for operation, shape in others if operation != "all-gather"]
    assert all(key.startswith("all-to-all ") for key in moved), "only the embedding's units change places"
    assert sum(sent[key] for key in moved) <= 1
    return gathered


# The first one in `make test-slow`, every one in `make proof`.
CONFIGURATIONS = [
    pytest.param(
        documented,
        taps,
        id=f"{documented.model}-{documented.topology}-{taps}",
        marks=pytest.mark.proof if number else pytest.mark.slow,
    )
    for number, (documented, taps) in enumerate(itertools.product(DOCUMENTED, TAPS))
]


@pytest.mark.parametrize(("documented", "taps"), CONFIGURATIONS)
def test_a_documented_configuration_fits_as_the_page_says(documented: Documented, taps: str) -> None:
    step = documented.step(taps)
    compiled = compile_step(step)
    memory = parse_accelerator(documented.topology).memory_bytes
    # What the host has not fetched yet is in its own memory: the chip holds one step's outputs.
    assert compiled.arguments + compiled.temporaries <= memory
    assert compiled.peak <= memory
    config = model_config(documented.model)
    layers = len(step.layers or range(config.num_hidden_layers))
    assert compiled.host_outputs == documented.rows * 4096 * config.hidden_size * 2 * layers
    assert re.search(
        rf"{documented.model.upper()} \|.*`{documented.topology}`.*\| {taps} \|.* {compiled.peak / 1e9:.1f} GB", PAGE
    )

    fsdp = parse_mesh(compiled.mesh).fsdp
    assert bool(gathered_kernels(compiled.collectives, documented.model, fsdp)) == (fsdp > 1)


# Elsewhere a step of the longest rows has no more tokens than the step above.
LONGER = [it for it in DOCUMENTED if it.longest > it.rows * 4096]


@pytest.mark.proof
@pytest.mark.parametrize("documented", LONGER, ids=lambda it: f"{it.model}-{it.topology}")
def test_the_longest_rows_fit_with_all_taps(documented: Documented) -> None:
    compiled = compile_step(documented.longest_step("all"))
    assert compiled.peak <= parse_accelerator(documented.topology).memory_bytes


@pytest.mark.proof
def test_two_layers_at_most_are_whole_at_a_time() -> None:
    """Twice the layers need no more room for gathered kernels; with eager gathering they do."""
    shallow, deep = (compile_step(TpuStep("72b", "v5e:8x8", 1, 2048, (last,))) for last in (9, 19))
    layer = 1.76e9  # bytes of one layer's kernels
    assert deep.temporaries < 3.5 * layer
    assert abs(deep.temporaries - shallow.temporaries) < layer / 2
    step = json.dumps({"model": "72b", "topology": "v5e:8x8", "rows": 1, "row_length": 2048, "layers": [19]})
    given = json.loads(step) | {"sites": ["residual"], "mesh": "auto"}
    eager = subprocess.run(
        [sys.executable, "-c", _EAGER, json.dumps(given)],
        env={**os.environ, **COMPILER_ENVIRONMENT},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(eager.stdout.splitlines()[-1])["temporaries"] > deep.temporaries + 2 * layer


@pytest.mark.slow
def test_what_does_not_fit_is_refused_with_the_compilers_figure() -> None:
    with pytest.raises(
        DeviceError, match=r"72b on v5e:2x2, 4 rows of 4096 tokens a chip: does not fit \(Used \S+G of 15.75G"
    ):
        compile_step(TpuStep("72b", "v5e:2x2", 4, 4096))


_FAMILIES = {
    "Qwen3-8B": {
        "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936,
        "rope_theta": 1e6,
    },
    "Llama-3.1-8B": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256, "rope_theta": 5e5,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "Gemma-2-9B": {
        "model_type": "gemma2", "hidden_size": 3584, "intermediate_size": 14_336, "num_hidden_layers": 42,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 256_000,
        "sliding_window": 4096, "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name == "Gemma-2-9B" else pytest.mark.proof) for name in _FAMILIES],
)
def test_a_step_of_each_family_compiles_for_a_tpu_within_its_memory(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(_FAMILIES[name]))
    compiled = compile_step(TpuStep(str(tmp_path), "v5e:2x4", 1, 4096))
    assert compiled.peak <= parse_accelerator("v5e:2x4").memory_bytes

"""Every form that a collective has in a program's text; what real programs hold is asserted in test_tpu_compile."""

import pytest

from layertap.plan.collectives import collectives

KERNEL, PART = "bf16[896,1152]{1,0:T(8,128)(2,1)}", "bf16[224,1152]{1,0:T(8,128)(2,1)S(1)}"
OTHER, OTHERS_PART = "bf16[4864,896]{1,0}", "bf16[1216,896]{1,0}"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"%g = {KERNEL} all-gather({PART} %p), dimensions={{0}}", {"all-gather bf16[896,1152]": 1}),
        ("ROOT %r = f32[] all-reduce(f32[] %p), to_apply=%add", {"all-reduce f32[]": 1}),
        (
            f"%g = ({KERNEL}, /*index=1*/{OTHER}) all-gather({PART} %p, {OTHERS_PART} %q), dimensions={{0}}",
            {"all-gather bf16[896,1152]": 1, "all-gather bf16[4864,896]": 1},
        ),
        (f"%s = ({PART}, {KERNEL}) all-gather-start({PART} %p)", {"all-gather bf16[896,1152]": 1}),
        (
            f"%s = (({PART}, {OTHERS_PART}), ({KERNEL}, {OTHER})) all-gather-start({PART} %p, {OTHERS_PART} %q)",
            {"all-gather bf16[896,1152]": 1, "all-gather bf16[4864,896]": 1},
        ),
        (
            f"%s = ({OTHER}, {OTHER}, u32[]{{:S(2)}}, u32[]{{:S(2)}}) collective-permute-start({OTHER} %p)",
            {"collective-permute bf16[4864,896]": 1},
        ),
        (
            f"%s = ({KERNEL}, {OTHER}) all-reduce-start({KERNEL} %p, {OTHER} %q)",
            {
                "all-reduce bf16[896,1152]": 1,
                "all-reduce bf16[4864,896]": 1,
            },
        ),
        (f"%d = {KERNEL} all-gather-done(({PART}, {KERNEL}) %s)", {}),
        (f"%f = ({KERNEL}, {OTHER}) fusion({PART} %all-gather.3), calls=%fused", {}),
    ],
)
def test_a_collective_is_found_in_every_form(line: str, expected: dict[str, int]) -> None:
    assert collectives(f"%a = f32[8]{{0}} add(f32[8] %x, f32[8] %y)\n  {line}\n") == expected


def test_the_same_collective_is_counted() -> None:
    line = f"%g = {KERNEL} all-gather({PART} %p)\n"
    assert collectives(3 * line) == {"all-gather bf16[896,1152]": 3}

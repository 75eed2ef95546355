"""The commands of docs/tpu.md, run as they are printed and in that order."""

import re
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager

import commands
import manage_tpus
import pytest
import tyro
from fakes.cloud_tpu import PROJECT, FakeCloudTpu

from layertap.config.plan import PlanConfig

Tpu = Callable[..., int]
Running = Callable[[FakeCloudTpu, str], AbstractContextManager[manage_tpus.Process]]

GUIDE = (commands.ROOT / "docs" / "tpu.md").read_text()

PLAN = "layertap plan --model Qwen/Qwen2.5-7B --accelerator v5litepod-64 --dataset_path tasks.jsonl --price_per_hour 20"
# Every `layertap` and `python` command of the guide, and the test that runs it; this file runs
# those of manage_tpus.sh. A new command fails until a test runs it, too.
TESTED_IN = {
    PLAN: "tests/tpu/test_guide.py::test_the_first_plan_is_one_that_the_command_line_takes",
    "layertap plan --model 7b --accelerator v5litepod-64 --tokens 100000000 --format safetensors"
    " --output_dir gs://my-bucket/activations --price_per_hour 77 --price_per_gb_month 0.02": (
        "tests/plan/test_command.py::test_the_plan_of_the_guide_is_as_printed"
    ),
    "python -m pip wheel --no-deps --wheel-dir dist .": (
        "tests/tpu/test_setup_tpu_worker.py::test_a_wheel_comes_from_a_bucket_and_the_unit_is_one_that_systemd_accepts"
    ),
    'python extract_activations.py --multihost --num_hosts 4 --host_id 0 --coordinator_address "10.0.0.1:8476" ...': (
        "tests/test_printed_commands.py::MULTIHOST"
    ),
}
NEEDS_AN_ACCOUNT = "Commands that begin with `gcloud` **need a cloud account, and we did not run them**"


def printed() -> list[str]:
    """Return every indented command of the guide, lines joined, without what `layertap plan`
    prints.
    """
    blocks = [block for block in re.findall(r"(?m)(?:^    .+\n)+", GUIDE) if not block.startswith("    run  ")]
    text = "\n".join(line.removeprefix("    ") for block in blocks for line in block.splitlines())
    return re.split(r"\n(?=[a-z.][\w./]* )", text.replace("\\\n", " "))


def test_every_command_is_run_or_said_to_need_an_account() -> None:
    assert NEEDS_AN_ACCOUNT in " ".join(GUIDE.split())
    others = [command for command in printed() if not command.startswith(("gcloud ", "./scripts/manage_tpus.sh "))]
    assert {" ".join(command.split()) for command in others} == set(TESTED_IN)


@pytest.mark.parametrize("place", TESTED_IN.values())
def test_the_tests_that_run_them_are_there(place: str) -> None:
    file, _, name = place.partition("::")
    assert re.search(rf"(?m)^(def )?{name}\b", (commands.ROOT / file).read_text())


def test_the_first_plan_is_one_that_the_command_line_takes() -> None:
    config = tyro.cli(PlanConfig, args=shlex.split(PLAN)[2:], use_underscores=True)
    assert (config.model_path, config.accelerator) == ("Qwen/Qwen2.5-7B", "v5litepod-64")
    assert (config.dataset_path, config.price_per_hour) == ("tasks.jsonl", 20.0)
    assert config.batch_size is None


@pytest.mark.whole
def test_from_nothing_to_32_workers_and_back(
    cloud: FakeCloudTpu, tpu: Tpu, running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs in this process; tests/test_printed_commands.py shows that the script passes commands
    on.
    """

    def output_of(command: str) -> str:
        capsys.readouterr()
        assert tpu(*shlex.split(command)) == 0
        return capsys.readouterr().out

    dry, create, watch, status, listing, delete, empty = (
        command.replace("my-project", PROJECT).removeprefix("./scripts/manage_tpus.sh ")
        for command in printed()
        if command.startswith("./scripts/manage_tpus.sh")
    )
    assert len(output_of(dry).splitlines()) == 32
    assert not cloud.nodes
    output_of(create)
    assert sorted(cloud.workers()) == list(range(32))
    metadata = cloud.nodes["us-west4-a", "tpu-us-west4-a-31"]["metadata"]
    assert metadata["startup-script"] == (commands.ROOT / "scripts" / "setup_tpu_worker.sh").read_text()
    assert "--machine_id {worker}" in metadata["layertap-extract-flags"]
    with running(cloud, watch) as process:
        cloud.set_state("tpu-us-central1-a-3", "PREEMPTED")
        manage_tpus.wait_for(lambda: cloud.states().get("tpu-us-central1-a-3") == "READY", process)
        manage_tpus.interrupt(process)
    assert output_of(status).splitlines()[1].split() == ["us-central1-a", "16", *"000000"]
    assert '"counts": {\n  "running": 32\n }' in output_of(listing)
    output_of(delete)
    assert len(output_of(empty).splitlines()) == 1
    assert not cloud.nodes

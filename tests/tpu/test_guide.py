"""The commands of docs/tpu.md, as they are printed and in that order."""

import re

import commands
import manage_tpus
from fakes.cloud_tpu import PROJECT, FakeCloudTpu

GUIDE = (commands.ROOT / "docs" / "tpu.md").read_text()


def printed() -> list[str]:
    """Every indented command of the guide, its continuation lines joined; what `layertap plan` prints is none."""
    blocks = [block for block in re.findall(r"(?m)(?:^    .+\n)+", GUIDE) if not block.startswith("    run  ")]
    text = "\n".join(line.removeprefix("    ") for block in blocks for line in block.splitlines())
    return re.split(r"\n(?=[a-z.][\w./]* )", text.replace("\\\n", " "))


def test_every_command_is_run_or_said_to_need_an_account() -> None:
    kinds = {command.split()[0] for command in printed()}
    assert kinds == {"gcloud", "./scripts/manage_tpus.sh", "python", "layertap"}


def test_from_nothing_to_32_workers_and_back(cloud: FakeCloudTpu) -> None:
    dry, create, watch, status, listing, delete, empty = (
        command.replace("my-project", PROJECT).removeprefix("./scripts/manage_tpus.sh ")
        for command in printed()
        if command.startswith("./scripts/manage_tpus.sh")
    )
    assert len(manage_tpus.run(cloud, dry).splitlines()) == 32
    assert not cloud.nodes
    manage_tpus.run(cloud, create)
    assert sorted(cloud.workers()) == list(range(32))
    metadata = cloud.nodes["us-west4-a", "tpu-us-west4-a-31"]["metadata"]
    assert metadata["startup-script"] == (commands.ROOT / "scripts" / "setup_tpu_worker.sh").read_text()
    assert "--machine_id {worker}" in metadata["layertap-extract-flags"]
    with manage_tpus.running(cloud, watch) as process:
        cloud.set_state("tpu-us-central1-a-3", "PREEMPTED")
        manage_tpus.wait_for(lambda: cloud.states().get("tpu-us-central1-a-3") == "READY", process)
        manage_tpus.interrupt(process)
    assert manage_tpus.run(cloud, status).splitlines()[1].split() == ["us-central1-a", "16", *"000000"]
    assert '"counts": {\n  "running": 32\n }' in manage_tpus.run(cloud, listing)
    manage_tpus.run(cloud, delete)
    assert len(manage_tpus.run(cloud, empty).splitlines()) == 1
    assert not cloud.nodes

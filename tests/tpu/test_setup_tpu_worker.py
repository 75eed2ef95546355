"""scripts/setup_tpu_worker.sh for real: a venv, the package from the working tree, a worker that
runs, dies, and ends.

The package's dependencies come from the machine by PYTHONPATH, not from the index: libtpu alone is
300 MB.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import commands
import pytest
from fakes.instance_metadata import FakeMetadata

SCRIPT = commands.ROOT / "scripts" / "setup_tpu_worker.sh"


@dataclass
class Vm:
    """A TPU VM: its metadata, and the folder that the script fills."""

    metadata: FakeMetadata
    home: Path
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """A startup script's environment, without this process's own settings."""
        installed = [path for path in sys.path if path.endswith("-packages")]
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.home.parent),
            "PYTHONPATH": os.pathsep.join(installed),
            "LAYERTAP_HOME": str(self.home),
            "LAYERTAP_METADATA_URL": f"{self.metadata.address}/computeMetadata/v1",
            "LAYERTAP_STORAGE_URL": self.metadata.address,
            "LAYERTAP_EXTRAS": "",
            "LAYERTAP_PIP_FLAGS": "--no-deps --no-build-isolation --no-index",
            "LAYERTAP_SUPERVISOR": "loop",
            "LAYERTAP_RESTART_SECONDS": "0.2",
            "JAX_PLATFORMS": "cpu",
            **self.settings,
        }

    def boot(self) -> subprocess.CompletedProcess[str]:
        """Run the startup script as at boot."""
        return subprocess.run(["bash", SCRIPT], env=self.environment, capture_output=True, text=True, timeout=200)

    def python(self, *arguments: str | Path) -> str:
        """What the installed Python prints."""
        command = [self.home / "venv/bin/python", *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def files(self) -> dict[str, tuple[int, bytes]]:
        """Every file that the script made, with its last change; not what the worker writes."""
        ours = [path for path in self.home.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        worker = {self.home / "worker.log", *(self.home / "work").rglob("*"), *(self.home / "huggingface").rglob("*")}
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in ours if path not in worker}

    def log(self) -> str:
        path = self.home / "worker.log"
        return path.read_text() if path.exists() else ""

    def pid(self) -> int:
        return int((self.home / "supervise.pid").read_text())


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that make the package, because a build leaves files beside them."""
    folder = tmp_path_factory.mktemp("tree")
    shutil.copytree(commands.ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(commands.ROOT / name, folder)
    return folder


@pytest.fixture
def vm(tmp_path: Path, package: Path) -> Iterator[Vm]:
    with FakeMetadata() as metadata:
        vm = Vm(metadata, tmp_path / "opt")
        metadata.attributes = {
            "layertap-worker-id": "5",
            "layertap-package": str(package),
            "layertap-extract-flags": "--help",
        }
        yield vm
        if (vm.home / "supervise.pid").exists() and vm.pid() in _sessions(vm.home):
            os.kill(vm.pid(), signal.SIGTERM)


def _sessions(home: Path) -> set[int]:
    """The processes that run this folder's loop."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(home / "supervise").encode() in words:
                found.add(int(entry.name))
    return found


def wait_for(condition: Callable[[], bool], vm: Vm) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, vm.log()
        time.sleep(0.02)


def _workers(vm: Vm) -> list[int]:
    """The processes that the loop has started."""
    loop = vm.pid()
    return [int(pid) for pid in Path(f"/proc/{loop}/task/{loop}/children").read_text().split()]


@pytest.mark.slow
def test_from_a_bare_vm_to_a_finished_worker_and_nothing_changes_the_second_time(
    vm: Vm, tiny_model: Path, demo_tasks: Path
) -> None:
    (vm.home.parent / "my data").mkdir()
    shutil.copy(demo_tasks, vm.home.parent / "my data" / "stream_5.jsonl")
    vm.metadata.attributes["layertap-extract-flags"] = (
        f"--dataset_path '{vm.home.parent}/my data/stream_{{worker}}.jsonl' --model_path {tiny_model}"
        " --max_tasks 2 --predictions_per_task 1 --layers_to_extract 0"
    )
    vm.metadata.outages = 2
    first = vm.boot()
    assert first.returncode == 0, first.stderr
    assert (vm.home / "worker.env").read_text() == "TPU_WORKER_ID=5\n"
    wait_for((vm.home / "supervise.pid").exists, vm)
    before = vm.files()
    second = vm.boot()
    assert second.returncode == 0, second.stderr
    assert vm.files().items() >= before.items()
    wait_for(lambda: bool(_workers(vm)), vm)
    os.kill(_workers(vm)[0], signal.SIGKILL)
    wait_for((vm.home / "ended").exists, vm)
    assert (vm.home / "ended").read_text() == "0\n", vm.log()
    assert "worker ended with status 137" in vm.log()
    assert (vm.home / "work" / "checkpoints" / "checkpoint_worker_5.json").exists()
    vm.python("-m", "layertap", "verify", vm.home / "work" / "activations")
    before, log = vm.files(), vm.log()
    assert vm.boot().returncode == 0
    assert vm.files() == before
    assert vm.log() == log


def _replace_worker(vm: Vm, body: str) -> None:
    """Replace the program by `body`; the loop treats every worker in the same way."""
    program = vm.home / "venv/bin/layertap"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f"#!/usr/bin/env bash\n{body}\n")
    program.chmod(0o755)


@pytest.fixture
def installed(vm: Vm) -> Vm:
    """A VM that already has the package."""
    vm.home.mkdir()
    (vm.home / "installed").write_text(f"{vm.metadata.attributes['layertap-package']} []\n")
    return vm


def test_a_crashed_worker_is_started_again_and_runs_once_only(installed: Vm) -> None:
    _replace_worker(installed, 'echo "run as $* with ${TPU_WORKER_ID-nothing}"; echo $$ >pid; exec sleep 600')
    pid = installed.home / "work" / "pid"
    assert installed.boot().returncode == 0
    wait_for(lambda: pid.exists() and pid.read_text() != "", installed)
    before, first = installed.files(), int(pid.read_text())
    assert installed.boot().returncode == 0
    assert installed.files() == before
    assert int(pid.read_text()) == first
    assert len(_sessions(installed.home)) == 1
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: pid.read_text() not in ("", f"{first}\n"), installed)
    assert "worker ended with status 137" in installed.log()
    assert "run as extract --worker_id 5 --help with nothing" in installed.log()
    # Other flags: the worker is stopped, and runs again with them.
    installed.metadata.attributes["layertap-extract-flags"] = "--batch_size 2"
    assert installed.boot().returncode == 0
    wait_for(lambda: "run as extract --worker_id 5 --batch_size 2 with nothing" in installed.log(), installed)
    assert len(_sessions(installed.home)) == 1


def test_wrong_input_is_not_tried_again(installed: Vm) -> None:
    _replace_worker(installed, "echo once; exit 2")
    assert installed.boot().returncode == 0
    wait_for((installed.home / "ended").exists, installed)
    assert (installed.home / "ended").read_text() == "2\n"
    wait_for(lambda: not _sessions(installed.home), installed)
    assert installed.boot().returncode == 0
    assert installed.log().count("once") == 1


def test_each_host_of_a_slice_knows_the_others(installed: Vm) -> None:
    installed.metadata.attributes |= {
        "worker-network-endpoints": "a:8470:10.0.0.1,b:8470:10.0.0.2",
        "agent-worker-number": "1",
    }
    installed.settings["LAYERTAP_START"] = "no"
    assert installed.boot().returncode == 0
    assert (
        (installed.home / "run-worker")
        .read_text()
        .rstrip()
        .endswith(" --help --multihost --num_hosts 2 --host_id 1 --coordinator_address 10.0.0.1:8476")
    )


def build_wheel(package: Path, folder: Path) -> Path:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", folder, package], check=True, timeout=200)
    (wheel,) = folder.iterdir()
    return wheel


@pytest.mark.slow
def test_another_package_of_the_same_version_takes_the_place_of_the_first(
    vm: Vm, package: Path, tmp_path: Path
) -> None:
    vm.settings |= {"LAYERTAP_START": "no", "PYTHONPATH": ""}  # pip would find the developer's own installation there
    changed = tmp_path / "changed"
    shutil.copytree(package, changed)
    (changed / "src/layertap/another.py").write_text("")
    for tree, is_another in ((package, False), (changed, True)):
        vm.metadata.attributes["layertap-package"] = str(build_wheel(tree, tmp_path / f"wheels of {tree.name}"))
        done = vm.boot()
        assert done.returncode == 0, done.stderr
        (installed,) = vm.home.glob("venv/lib/python*/site-packages/layertap")
        assert (installed / "another.py").exists() is is_another


@pytest.mark.slow
def test_a_wheel_comes_from_a_bucket_and_the_unit_is_one_that_systemd_accepts(
    vm: Vm, package: Path, tmp_path: Path
) -> None:
    wheel = build_wheel(package, tmp_path / "wheels")
    vm.metadata.objects["bucket", f"wheels/{wheel.name}"] = wheel.read_bytes()
    vm.metadata.attributes["layertap-package"] = f"gs://bucket/wheels/{wheel.name}"
    vm.settings |= {"LAYERTAP_SUPERVISOR": "systemd", "LAYERTAP_UNIT_FOLDER": str(tmp_path), "LAYERTAP_START": "no"}
    done = vm.boot()
    assert done.returncode == 0, done.stderr
    before, unit = vm.files(), (tmp_path / "layertap-worker.service").stat().st_mtime_ns
    assert vm.python("-c", "import layertap; print(layertap.__file__)").startswith(f"{vm.home}/venv/")
    assert vm.boot().returncode == 0
    assert vm.files() == before
    assert (tmp_path / "layertap-worker.service").stat().st_mtime_ns == unit
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here to check the unit with")
    checked = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "layertap-worker.service"], capture_output=True, text=True, timeout=60
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"layertap-worker-id": "five"}, "'five', not a number"),
        ({"layertap-package": ""}, "--package"),
        ({"layertap-extract-flags": ""}, "--extract_flags"),
        ({"layertap-package": "/nowhere.whl"}, "no package /nowhere.whl"),
        ({"layertap-package": "gs://bucket/nothing.whl"}, "cannot read gs://bucket/nothing.whl"),
    ],
)
def test_what_is_missing_is_named(vm: Vm, attributes: dict[str, str], says: str) -> None:
    vm.metadata.attributes |= attributes
    done = vm.boot()
    assert done.returncode == 2
    assert says in done.stderr

"""Runs in processes of their own that are killed, again and again, and what the kills left behind.

A kill falls at a random moment, or when the test sees a step of the commit: a file that appears in
the output folder, or a request that reaches the bucket, before or after it takes effect. Nothing in
the program knows of it.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import commands
import shards
from clouds import BUCKET
from fakes.gcs import FakeGcs
from runs import small_flags

PREFIX = "activations/tpu_0/"
MANIFEST, CHECKPOINT = "metadata.json", "checkpoint_worker_0.json"


@dataclass(frozen=True)
class Scenario:
    """Which kind of run is killed."""

    form: str = "pickle"
    bucket: bool = True
    delete: bool = False
    storm: float = 0.0
    direct: bool = False
    """Whether shards go to the bucket from memory."""

    def __str__(self) -> str:
        parts = (
            self.form,
            "bucket alone" if self.direct else "bucket" if self.bucket else "folder",
            "deleting" if self.delete else "",
        )
        return " ".join(part for part in (*parts, "faults" if self.storm else "") if part)


@dataclass
class Machine:
    """One disk, one bucket, and the command that is started on them."""

    folder: Path
    model: Path
    tasks: Path
    scenario: Scenario
    gcs: FakeGcs | None = None
    wiped: bool = False
    process: "subprocess.Popen[str] | None" = field(default=None)

    @property
    def output(self) -> Path:
        """The output folder."""
        return self.folder / "activations"

    def start(self) -> "subprocess.Popen[str]":
        """Start the command."""
        flags = small_flags(self.tasks, self.model, shard_size_gb=0.002, format=self.scenario.form)
        flags += ["--uploads_at_once", "2"] if self.scenario.bucket else []
        if self.scenario.direct:
            flags += ["--output_dir", f"gs://{BUCKET}/{PREFIX}"]
        elif self.scenario.bucket:
            flags += ["--gcs_bucket", BUCKET]
        flags += ["--delete_local_after_upload"] if self.scenario.delete else []
        self.folder.mkdir(parents=True, exist_ok=True)
        script = commands.ROOT / "extract_activations.py"
        environment = {} if self.gcs is None else {"STORAGE_EMULATOR_HOST": self.gcs.endpoint}
        command = [script, *flags, "--activation_type", "residual", "mlp"]
        self.process = commands.start(command, self.folder, environment)
        return self.process

    def kill(self) -> bool:
        """Kill the process if it is alive, and return whether it was.

        The server's threads may call it.
        """
        if self.process is None or self.process.poll() is not None:
            return False
        os.kill(self.process.pid, signal.SIGKILL)
        return True

    def wipe(self) -> None:
        """Continue with an empty disk, as a recreated TPU does."""
        shutil.rmtree(self.folder)
        self.wiped = True

    def run_to_the_end(self) -> str:
        """Start the command, let it finish, and return what it printed."""
        process = self.start()
        said = "".join(process.communicate(timeout=280))
        assert process.returncode == 0, said
        return said

    def committed(self) -> int:
        """How many shards the manifest in the output folder names."""
        return len(shards.manifest(self.output)["shards"])

    def bucket_contents(self) -> dict[str, bytes]:
        """What is in the bucket, except metrics, which contain times."""
        assert self.gcs is not None
        found = self.gcs.contents(BUCKET, PREFIX)
        return {name: data for name, data in found.items() if not name.startswith("metrics/")}

    def local_contents(self) -> dict[str, bytes]:
        """What is in the output folder, byte for byte."""
        return shards.contents(self.output)


NewMachine = Callable[..., Machine]


def require_same(machine: Machine, undisturbed: Machine) -> None:
    """Require the same bytes as in an undisturbed run.

    A wiped disk lacks what only the bucket has.
    """
    assert machine.bucket_contents() == undisturbed.bucket_contents()
    if machine.scenario.direct:
        assert not [path for path in machine.folder.rglob("*") if path.is_file()], "nothing goes to the disk"
        return
    here, there = machine.local_contents(), undisturbed.local_contents()
    missing = set(there) - set(here)
    assert {name: there[name] for name in set(there) - missing} == here
    assert not missing or (machine.wiped and MANIFEST not in missing)


def at_random(machine: Machine, chance: random.Random, seconds: float) -> str:
    """Kill at a random moment of the run's usual time."""
    deadline = time.monotonic() + chance.random() * seconds
    process = machine.start()
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    return end(machine, "at a random moment")


def at_a_file(machine: Machine, chance: random.Random) -> str:
    """Kill when a file of some kind appears or is replaced, at a random one of these moments."""
    kind = chance.choice(("partial", "shard", "metadata.json", "checkpoint", "statistics"))
    countdown = chance.randrange(1, 6)
    process = machine.start()
    seen = _files(machine.folder, kind)
    while process.poll() is None:
        now = _files(machine.folder, kind)
        if now - seen:
            countdown -= 1
            seen |= now
            if countdown == 0:
                break
    return end(machine, f"at a file: {kind}")


def at_a_request(machine: Machine, chance: random.Random) -> str:
    """Kill before or after a random request to the bucket takes effect."""
    kind = chance.choice(("call", "call_after"))
    operation, name = chance.choice(
        (
            ("insert", ""),
            ("insert", MANIFEST),
            ("insert", CHECKPOINT),
            ("insert", "owner.json"),
            ("list", ""),
            ("stat", ""),
        )
        + (("insert", ".gz" if machine.scenario.form == "pickle" else ".safetensors"),) * 4
    )
    countdown = 1 if operation in ("list", "stat") or name == "owner.json" else chance.randrange(1, 8)

    def strike() -> bool:
        nonlocal countdown
        countdown -= 1
        return countdown == 0 and machine.kill()

    fault = machine.gcs.faults.plan(kind, operation, name, times=10_000, action=strike)
    machine.start().communicate(timeout=280)
    machine.gcs.faults.planned.remove(fault)
    return end(machine, f"{'before' if kind == 'call' else 'after'} {operation} {name}".strip())


def end(machine: Machine, how: str) -> str:
    """Kill what is left of the process. Return how it was killed, or that it had ended before."""
    machine.kill()
    assert machine.process is not None
    output, errors = machine.process.communicate(timeout=60)
    code = machine.process.returncode
    assert code in (0, -signal.SIGKILL), output + errors
    return how if code else "ended before"


def traces(machine: Machine) -> list[str]:
    """Say between which steps of the commit the kill fell, from the files that it left."""
    found: list[str] = []
    if machine.scenario.direct:
        there = shards.described(machine.bucket_contents())
        return _traces_in_bucket(machine, len(there["shards"]), set()) or ["between two shards"]
    here = shards.manifest(machine.output)
    committed = len(here["shards"])
    files = {path.relative_to(machine.output).as_posix() for path in machine.output.rglob("*") if path.is_file()}
    if any(name.endswith(".partial") for name in files):
        found.append("a file half written")
    if {name for name in files if "shard_" in name and not name.endswith(".partial")} - _named(here):
        found.append("a shard's file written, manifest not")
    if _parsed(machine.folder / "checkpoints" / CHECKPOINT).get("shards", 0) < committed:
        found.append("manifest written, checkpoint not")
    if machine.scenario.bucket:
        found += _traces_in_bucket(machine, committed, files)
    return found or ["between two shards"]


def _traces_in_bucket(machine: Machine, committed: int, files: set[str]) -> list[str]:
    objects = machine.bucket_contents()
    there = shards.described(objects)
    named = _named(there)
    checkpoint = json.loads(objects.get(CHECKPOINT, b'{"shards": 0}'))
    happened = {
        "committed here, not in the bucket": len(there["shards"]) < committed,
        "an object uploaded, manifest in the bucket not": any("shard_" in name for name in set(objects) - named),
        "manifest in the bucket, checkpoint there not": checkpoint["shards"] < len(there["shards"]),
        "in the bucket, not yet deleted here": machine.scenario.delete and bool(named & files),
        "the owner's claim left": "owner.json" in objects,
    }
    return [trace for trace, so in happened.items() if so]


def _parsed(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _named(manifest: dict[str, Any]) -> set[str]:
    return {file["path"] for shard in manifest.get("shards", []) for file in shard["files"]}


def _files(folder: Path, kind: str) -> set[tuple[str, int]]:
    """Files whose path has `kind` in it, each with the time at which it was written."""
    found = set()
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            if kind in path:
                try:
                    found.add((path, os.stat(path).st_mtime_ns))
                except FileNotFoundError:
                    continue
    return found


def kill_until_done(
    machine: Machine, undisturbed: Machine, kills: int, chance: random.Random, tally: Counter[str]
) -> int:
    """Kill a run up to `kills` times, let it end, and compare. Return how many kills it took."""
    killed = 0
    while killed < kills:
        files = () if machine.scenario.direct else (lambda: at_a_file(machine, chance),)
        ways = (lambda: at_random(machine, chance, 6.0), *files)
        requests = (lambda: at_a_request(machine, chance),) * 2 if machine.scenario.bucket else ()
        how = chance.choice((*ways, *requests))()
        if how == "ended before":
            break
        killed += 1
        tally[how] += 1
        tally.update(f"left: {trace}" for trace in traces(machine))
        if machine.scenario.bucket and chance.random() < 0.3:
            machine.wipe()
            tally["then an empty disk"] += 1
    machine.run_to_the_end()
    require_same(machine, undisturbed)
    return killed

"""Every error that Layertap raises on purpose.

    LayertapError                 exit status 1
    ├── InputError                exit status 2: wrong input; the message says what to do
    │   ├── UsageError            flags that contradict each other or make no sense
    │   │   └── NotFoundError     something named that Google does not find, or not now
    │   ├── DatasetError          a file or folder of tasks that cannot be read as one
    │   │   └── BadTaskError      one task that is malformed
    │   ├── PromptError           a grid encoder, template or tokenizer that cannot be used
    │   │   └── OverlongError     a sample longer than `--max_seq_length`
    │   ├── DumpError             a dump to compare that cannot be read as one
    │   ├── ModelError            a checkpoint that is missing, unsupported or unlike its config
    │   ├── RunMismatchError      the output folder belongs to another run
    │   ├── HostsStoppedError     the input of one of several hosts is wrong, and all stop together
    │   └── AccessError           credentials that are missing, or that do not allow this
    ├── DeviceError               a step that the device could not run
    │   └── DoesNotFitError       a step that needs more memory than the device has
    ├── StorageError              output that could not be written, read or believed
    │   └── DamageError           a stored file that is not what the manifest says it is
    ├── LeaseLostError            a dataset shard that another worker has taken over
    ├── WorkersFailedError        shards or workers of a fleet that failed while others went on
    └── TpuError                  what Cloud TPU would not or could not do
        ├── NoCapacityError       a zone that has no free TPU: another zone, or later
        ├── QuotaError            more TPUs than the project may have there
        ├── DeletedError          a TPU that somebody deleted while it was being made
        └── UnreachableError      no answer, or one that says to come back later

Library errors (JSON, safetensors, fsspec, tokenizers, OS) are translated once, where they first
enter Layertap, with `raise ... from error`. Every message names the file, tensor, task or shard,
and what can be done about it.
"""


class LayertapError(Exception):
    """The root: catch this one to catch everything that Layertap raises on purpose."""

    exit_status = 1


class InputError(LayertapError):
    """Something that the user gave is wrong."""

    exit_status = 2


class UsageError(InputError):
    """Flags that contradict each other or make no sense."""


class NotFoundError(UsageError):
    """Something named that Google does not find, or not now."""


class DatasetError(InputError):
    """A dataset that cannot be read as one."""


class BadTaskError(DatasetError):
    """One malformed task, with its file, line and id."""


class PromptError(InputError):
    """A grid encoder, template or tokenizer that cannot be used."""


class OverlongError(PromptError):
    """A sample with more tokens than `--max_seq_length`."""


class DumpError(InputError):
    """Activations of another tool that cannot be read, or not held against a model."""


class ModelError(InputError):
    """A checkpoint that is missing, unsupported or does not fit its own config."""


class RunMismatchError(InputError):
    """The output folder holds another run's shards."""


class HostsStoppedError(InputError):
    """The input of one of several hosts is wrong; all of them stop at the same step."""


class DeviceError(LayertapError):
    """A step that the device could not run."""


class DoesNotFitError(DeviceError):
    """A step that needs more memory than the device has, as its compiler says."""


class StorageError(LayertapError):
    """Output that could not be written, read or believed."""


class DamageError(StorageError):
    """A stored file that is not what the manifest says it is."""


class LeaseLostError(LayertapError):
    """A dataset shard that another worker has taken over, because this one was not heard of."""


class WorkersFailedError(LayertapError):
    """Dataset shards, or workers, that failed while others went on."""


class AccessError(InputError):
    """Credentials that are missing, or that do not allow what was asked."""


class TpuError(LayertapError):
    """What Cloud TPU would not or could not do."""


class NoCapacityError(TpuError):
    """A zone that has no free TPU of the wanted type."""


class QuotaError(TpuError):
    """More TPUs than the project may have in a zone or region."""


class DeletedError(TpuError):
    """A TPU that somebody deleted while it was being made."""


class UnreachableError(TpuError):
    """Cloud TPU gave no answer, or one that says to come back later."""

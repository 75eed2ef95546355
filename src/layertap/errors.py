"""Every error that Layertap raises on purpose.

    LayertapError                 exit status 1
    ├── InputError                exit status 2: wrong input; the message says what to do
    │   ├── UsageError            flags that are invalid or contradict each other
    │   │   └── NotFoundError     a name that Google Cloud does not find, or not now
    │   ├── DatasetError          a file or folder that cannot be read as a dataset
    │   │   └── BadTaskError      one malformed task
    │   ├── PromptError           a grid encoder, template or tokenizer that cannot be used
    │   │   └── OverlongError     a sample longer than `--max_seq_length`
    │   ├── DumpError             a file of another tool's activations that cannot be read
    │   ├── ModelError            a checkpoint is missing, unsupported or contradicts its config
    │   ├── RunMismatchError      the output folder belongs to another run
    │   ├── HostsStoppedError     one of several hosts has wrong input, so all of them stop
    │   └── AccessError           missing credentials, or credentials that do not allow this
    ├── DeviceError               a step that the device could not run
    │   └── DoesNotFitError       a step that needs more memory than the device has
    ├── StorageError              output that could not be written or read, or cannot be trusted
    │   └── DamageError           a stored file that does not match the manifest
    ├── LeaseLostError            another worker has taken over a dataset shard
    ├── WorkersFailedError        some shards or workers of a fleet failed; the others continued
    └── TpuError                  Cloud TPU refused or failed a request
        ├── NoCapacityError       a zone has no free TPU: try another zone, or later
        ├── QuotaError            the project may not have that many TPUs there
        ├── DeletedError          somebody deleted a TPU while it was being created
        └── UnreachableError      no answer, or an answer that asks to try later

Layertap translates each library error (JSON, safetensors, fsspec, tokenizers, OS) once, where it
first enters Layertap, with `raise ... from error`. Every message names the file, tensor, task or
shard, and what you can do about it.
"""


class LayertapError(Exception):
    """The root. Catch it to catch everything that Layertap raises on purpose."""

    exit_status = 1


class InputError(LayertapError):
    """Something that the user gave is wrong."""

    exit_status = 2


class UsageError(InputError):
    """Flags are invalid or contradict each other."""


class NotFoundError(UsageError):
    """Google Cloud does not find something by its name, or does not find it now."""


class DatasetError(InputError):
    """A file or folder cannot be read as a dataset."""


class BadTaskError(DatasetError):
    """One task is malformed. The message names its file, line and id."""


class PromptError(InputError):
    """A grid encoder, template or tokenizer cannot be used."""


class OverlongError(PromptError):
    """A sample has more tokens than `--max_seq_length`."""


class DumpError(InputError):
    """Activations of another tool cannot be read, or cannot be compared with a model."""


class ModelError(InputError):
    """A checkpoint is missing, unsupported or contradicts its own config."""


class RunMismatchError(InputError):
    """The output folder holds another run's shards."""


class HostsStoppedError(InputError):
    """One of several hosts has wrong input. All of them stop at the same step."""


class DeviceError(LayertapError):
    """The device could not run a step."""


class DoesNotFitError(DeviceError):
    """A step needs more memory than the device has, according to its compiler."""


class StorageError(LayertapError):
    """Output could not be written or read, or cannot be trusted."""


class DamageError(StorageError):
    """A stored file does not match the manifest."""


class LeaseLostError(LayertapError):
    """Another worker has taken over a dataset shard, because this one was silent for too long."""


class WorkersFailedError(LayertapError):
    """Some dataset shards or workers failed; the others continued."""


class AccessError(InputError):
    """Credentials are missing, or do not allow the request."""


class TpuError(LayertapError):
    """Cloud TPU refused or failed a request."""


class NoCapacityError(TpuError):
    """A zone has no free TPU of the requested type."""


class QuotaError(TpuError):
    """The project may not have that many TPUs in a zone or region."""


class DeletedError(TpuError):
    """Somebody deleted a TPU while it was being created."""


class UnreachableError(TpuError):
    """Cloud TPU gave no answer, or asked to try again later."""

"""Find the command that installs a missing extra of Layertap.  Layertap is on no package index, so
`pip install 'layertap[s3]'` would find nothing, or another package. But pip recorded where it
installed Layertap from (`direct_url.json`, PEP 610). The extra can be installed from there too,
from any folder.
"""

import json
import shlex
import sys
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname


def install_command(extra: str) -> str:
    """Return the command that installs `extra` into the running environment."""
    return f"{shlex.quote(sys.executable)} -m pip install {requirement(extra, _origin())}"


def needed_for(url: str) -> str:
    """Say what to install if the library that reads this URL is missing.

    Google's libraries are dependencies of Layertap; they are missing only if somebody skipped them.
    """
    scheme = url.partition("://")[0]
    if scheme in ("s3", "s3a"):
        return install_command("s3")
    if scheme in ("gs", "gcs"):
        return f"{shlex.quote(sys.executable)} -m pip install google-cloud-storage gcsfs"
    return "the fsspec package for that scheme"


def requirement(extra: str, origin: dict[str, Any] | None) -> str:
    """Return what pip should install, quoted for a shell; `origin` is `direct_url.json`, or
    None.
    """
    if origin is None:  # from an index, or not installed: then the command depends on the folder
        return shlex.quote(f".[{extra}]") + ", in Layertap's folder"
    if "dir_info" in origin:
        editable = "--editable " if origin["dir_info"].get("editable") else ""
        return editable + shlex.quote(f"{url2pathname(urlsplit(origin['url']).path)}[{extra}]")
    version_control = origin.get("vcs_info")
    url = origin["url"]
    if version_control is not None:
        url = f"{version_control['vcs']}+{url}@{version_control['commit_id']}"
    return shlex.quote(f"layertap[{extra}] @ {url}")


def _origin() -> dict[str, Any] | None:
    try:
        text = distribution("layertap").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    return None if text is None else json.loads(text)

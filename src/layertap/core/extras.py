"""How what Layertap was installed without is added to it.

No package index has Layertap, so `pip install 'layertap[s3]'` would find nothing, or something
else. pip wrote down where it took Layertap from (`direct_url.json`, PEP 610), and that place gives
the extra too, from any folder.
"""

import json
import shlex
import sys
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname


def install_command(extra: str) -> str:
    """The command that adds `extra` to the environment that runs."""
    return f"{shlex.quote(sys.executable)} -m pip install {requirement(extra, _origin())}"


def needed_for(url: str) -> str:
    """What has to be installed where the library that reads this URL is not.

    Google's are part of every installation, unless somebody left out what Layertap depends on.
    """
    scheme = url.partition("://")[0]
    if scheme in ("s3", "s3a"):
        return install_command("s3")
    if scheme in ("gs", "gcs"):
        return f"{shlex.quote(sys.executable)} -m pip install google-cloud-storage gcsfs"
    return "the fsspec package for that scheme"


def requirement(extra: str, origin: dict[str, Any] | None) -> str:
    """What pip should install, quoted for a shell; `origin` is in `direct_url.json`, or None."""
    if origin is None:  # an index after all, or no installation: only then does the folder matter
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

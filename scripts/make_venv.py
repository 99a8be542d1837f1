"""Makes a virtual environment: `python3 scripts/make_venv.py .venv`. Needs nothing but Python's standard library.

Where Python comes without `ensurepip` (Debian's python3 without python3-venv), pip is taken from the package index.
Written so that old versions of Python can read it too, and are told that they are too old.
"""

import os
import re
import subprocess
import sys
import tempfile
import venv

OLDEST, NEWEST = (3, 10), (3, 13)


def main(folder):
    """Makes the environment in `folder`, or says in one line why not."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        allowed = "{}.{} to {}.{}".format(*OLDEST, *NEWEST)
        here = "{} is {}.{}".format(sys.executable, *sys.version_info[:2])
        sys.exit(f"dlrun needs Python {allowed}, but {here}; name another: make demo PYTHON=python3.12")
    try:
        import ensurepip
    except ImportError:
        ensurepip = None
    venv.create(folder, with_pip=ensurepip is not None, symlinks=True)
    if ensurepip is None:
        try:
            install_pip(os.path.join(folder, "bin", "python"))
        except Exception as error:
            sys.exit(
                f"no pip: Python has no ensurepip (install python3-venv), and the package index gave none ({error})"
            )


def install_pip(python):
    """Installs pip by running it out of its own wheel, fetched from the index that PIP_INDEX_URL names (or PyPI)."""
    from urllib.parse import urldefrag, urljoin
    from urllib.request import urlopen, urlretrieve

    page = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/") + "/pip/"
    with urlopen(page, timeout=60) as answer:
        text = answer.read().decode()
    links = re.findall(r'<a[^>]*href="([^"]+/pip-([0-9.]+)-py3-none-any\.whl[^"]*)"', text)
    link, _ = max(links, key=lambda found: [int(part) for part in found[1].split(".")])
    url = urldefrag(urljoin(page, link)).url
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, url.rsplit("/", 1)[1])
        urlretrieve(url, path)
        subprocess.run([python, path + "/pip", "install", "--quiet", path], check=True)


if __name__ == "__main__":
    main(sys.argv[1])

"""Packaging for designloop: everything that varies is read from settings.ini."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
extras = {name: cfg.get(f"{name}_requirements", "").split() for name in ("dev", "ray", "peers", "text", "lm", "hf")}
readme = here / "README.md"

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else cfg["description"],
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license="Apache-2.0",
    keywords=cfg["keywords"],
    url=cfg["git_url"],
    package_dir={"": "pkg"},
    packages=find_packages("pkg"),
    include_package_data=True,
    package_data={"designloop": ["**/*.json", "**/*.html", "**/*.css"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
        "jupyter_client.kernel_provisioners": ["designloop-warm=designloop.studies.warm:WarmProvisioner"],
    },
    zip_safe=False,
)

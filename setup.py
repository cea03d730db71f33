import platform
import re
import sys
from pathlib import Path

from setuptools import Distribution, find_packages, setup

# pip looks for every dependency before it looks at python_requires, and would blame one of them, after a long download.
if not (3, 11) <= sys.version_info[:2] <= (3, 12):
    sys.exit(f"fairseq-expire needs Python 3.11 or 3.12, and this is Python {platform.python_version()}.")

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "fairseq_expire/__init__.py").read_text(), re.MULTILINE)[1]


class DistributionWithData(Distribution):
    # An editable install asks for `has_data`, which setuptools never defined, and would leave data_files out.
    has_data = Distribution.has_data_files


setup(
    distclass=DistributionWithData,
    name="fairseq-expire",
    version=VERSION,
    description="Expire-Span language models, and the memories they are compared to, as a fairseq extension",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["fairseq_expire", "fairseq_expire.*"]),
    # fairseq looks for `--user-dir fairseq_expire` beside its own folder, in site-packages, whatever the current folder is.
    # An editable install would leave nothing there, so one file goes there in every install ("../purelib" is site-packages
    # seen from a wheel's data folder). A folder without an __init__.py never hides the package proper, as long as
    # that is found through sys.path: saying where packages are makes setuptools put this folder there, not an import hook.
    data_files=[("../purelib/fairseq_expire", ["LICENSE"])],
    package_dir={"": "."},
    package_data={"fairseq_expire.data": ["pg19_books.npz"]},
    install_requires=[
        "numpy",
        "requests",
        "safetensors",
        "sentencepiece",
        "torch",
        "tqdm",
        # The only builds of fairseq that Python 3.11 and 3.12 can import exist for this platform; elsewhere the
        # modules, which are plain PyTorch, still install.
        've-fairseq==0.12.3; sys_platform == "linux" and platform_machine == "x86_64"',
    ],
    extras_require={"plot": ["matplotlib"], "test": ["hypothesis", "matplotlib", "pytest", "pytest-xdist", "tensorboard"]},
)

import platform
import sys

from setuptools import Distribution, find_packages, setup

# pip looks for every dependency before it looks at requires-python, and would blame one of them, after a long download.
if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit(f"fairseq-expire needs Python 3.10 or newer, and this is Python {platform.python_version()}.")


class DistributionWithData(Distribution):
    # An editable install asks for `has_data`, which setuptools never defined, and would leave data_files out.
    has_data = Distribution.has_data_files


# What pyproject.toml cannot say; the rest is there.
setup(
    distclass=DistributionWithData,
    packages=find_packages(include=["fairseq_expire", "fairseq_expire.*"]),
    # fairseq looks for `--user-dir fairseq_expire` beside its own folder, in site-packages, from any current folder.
    # An editable install would leave nothing there, so every install puts one file there ("../purelib" is
    # site-packages seen from a wheel's data folder). A folder without an __init__.py never hides the package itself,
    # as long as that is found through sys.path. package_dir makes setuptools use sys.path, not an import hook.
    data_files=[("../purelib/fairseq_expire", ["LICENSE"])],
    package_dir={"": "."},
    package_data={"fairseq_expire.corpora": ["pg19_books.npz"]},
)

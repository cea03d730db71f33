"""The tasks. Importing them registers all that this package has for fairseq, and installs the patches.

fairseq imports the modules in the folders ``tasks`` and ``models`` of a user directory, but not the criterion.
"""

from fairseq_expire import requires_fairseq  # noqa: F401

# isort: split

from fairseq_expire import criterions, models  # noqa: F401  (registers the criterion and the architectures)
from fairseq_expire.fairseq_patches import install
from fairseq_expire.tasks.memory_caching_lm import MemoryCachingLMTask  # noqa: F401  (registers the task)
from fairseq_expire.tasks.memory_caching_tagging import MemoryCachingTaggingTask  # noqa: F401  (registers the task)

install()

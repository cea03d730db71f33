from fairseq_expire import with_fairseq  # noqa: F401

from . import checkpoints
from .ensembles import split_names_for
from .fusion import let_translation_models_load
from .memory_caching_lm import MemoryCachingLMTask  # importing it registers the task

checkpoints.install()
# Around what checks the files of these names.
split_names_for(MemoryCachingLMTask)
let_translation_models_load()

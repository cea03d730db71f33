from fairseq_expire import requires_fairseq  # noqa: F401

# isort: split

from fairseq_expire.fairseq_patches import checkpoints
from fairseq_expire.fairseq_patches.ensembles import split_names_for
from fairseq_expire.fairseq_patches.fusion import let_translation_models_load
from fairseq_expire.tasks.memory_caching_lm import MemoryCachingLMTask  # importing it registers the task

checkpoints.install()
# Around what checks the files of these names.
split_names_for(MemoryCachingLMTask)
let_translation_models_load()

from .ensembles import split_names_for
from .memory_caching_lm import MemoryCachingLMTask  # importing it registers the task

split_names_for(MemoryCachingLMTask)

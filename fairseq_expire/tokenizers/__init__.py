"""Tokenizers: text to symbol ids and back, as bytes, characters, words or subwords. They need no fairseq.

- ``chunks``: the parts of files that are tokenized independently.
- ``tokenizer``: the interface :class:`~fairseq_expire.tokenizers.tokenizer.Tokenizer`.
- ``bytes_and_chars``, ``words``, ``subwords``: its implementations.
- ``dictionary``, ``manifest``: dict.txt and manifest.json.
- ``bound``: a tokenizer with a dictionary, for text in memory.
"""

"""Preparing corpora: downloads, files, binarizing with a manifest, and verification.

- ``catalogue``: where published corpora are, and their checksums.
- ``download``, ``compressed``, ``sources``: from addresses, archives and folders to slices of files.
- ``binarize``: from slices of files to data that fairseq reads.
- ``verify``: from data back to text.
- ``command``: the command line of the scripts in data_prep.

Only ``binarize`` and ``verify`` need fairseq, whose file formats they write and read.
"""

"""Preparing corpora: downloads, files, binarizing with a manifest, and verification.

- ``catalogue``: where published corpora are, and their checksums.
- ``download``, ``compressed``, ``sources``: from addresses, archives and folders to slices of files.
- ``binarize``: from slices of files to data that fairseq reads.
- ``verify``: from data back to text.
- ``generated``: data with labels that a program makes.
- ``split_files``: the files of a split, for both kinds of data.
- ``command``, ``generated_command``: the command line of the scripts in data_prep.

Only ``binarize``, ``verify``, ``generated`` and ``split_files`` need fairseq, whose file formats they write and read.
"""

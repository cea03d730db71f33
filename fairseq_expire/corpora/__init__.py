"""Preparing corpora: downloads, files, binarizing with a manifest, and verification.

- ``catalogue``: where published corpora are, and their checksums.
- ``download``, ``compressed``, ``sources``: from addresses, archives and folders to slices of files.
- ``binarize``: from slices of files to data that fairseq reads.
- ``verify``: from data back to text.
- ``generated``: data with labels that a program makes.
- ``collision``: a generator of such data, for the script of that name.
- ``answers``: text that a program makes, and the tokens of it that have to be right.
- ``split_files``: the files of a split, for both kinds of data.
- ``command``, ``generated_command``: the command line of the scripts in data_prep.

Only ``binarize``, ``verify``, ``generated``, ``answers`` and ``split_files`` need fairseq, whose file formats they
write and read.
"""

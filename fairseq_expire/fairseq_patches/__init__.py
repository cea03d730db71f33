"""Everything that changes fairseq, or works around it.

A subclass that overrides a method where fairseq means it to is no patch. It is in ``tasks``, ``models`` or
``criterions``.

================  ==================================  ================================================================
module            fairseq's code                      what is different, why, and the test that fails without it
================  ==================================  ================================================================
user_dir          utils.import_user_module            Registers this package whatever path or name of its folder is
                                                      given; fairseq takes the last part of the path for its name.
                                                      test_the_same_package_registers_once
stray_lines       warnings and logs                   Leaves out lines that only a change of fairseq could avoid.
                                                      test_training_prints_no_stray_lines
hydra             fairseq_cli.hydra_train             Ends a run that cannot begin with the error message; Hydra
                                                      prints more below it.
                                                      test_hydra_shows_the_error_last
run_options       dataclass.initialize.add_defaults   Refuses asynchronous checkpoints, which would be written later
                                                      than their memory; keeps --position-range from run to run.
                                                      test_writing_asynchronously_is_refused
processes         distributed.utils                   Refuses several processes that do not know of each other;
                                                      each would train a model of its own.
                                                      test_processes_that_would_train_models_of_their_own
patched_task      tasks.FairseqTask.train_step        Lets the other processes go on when one runs out of memory;
                                                      they would wait forever.
                                                      test_one_that_runs_out_of_memory_does_not_stop_the_others
bounds            optim.fp16_optimizer                Clamps the float32 copies of parameters with bounds, too; the
                                                      optimizer would write its copies over the clamped parameters.
                                                      test_float32_copies_are_clamped_and_stay_exact
meters            logging.meters                      Adds a meter for maxima, which fairseq restores by its name.
                                                      test_fairseq_restores_the_maximum_from_a_checkpoint
saving            checkpoint_utils.save_checkpoint    Saves the memory of every process and makes copies atomic;
                  PathManager.copy                    a kill would leave half a checkpoint, or one without memory.
                                                      test_killed_while_a_checkpoint_is_copied
checkpoint_files  checkpoint_utils.save_checkpoint    Finds complete checkpoints, and deletes memory files that none
                                                      needs, for saving and resuming.
                                                      test_the_complete_one_with_the_most_updates
resuming          trainer.Trainer.load_checkpoint     Takes the last complete checkpoint, refuses one of another model
                  checkpoint_utils.load_checkpoint    or dictionary, begins a moving average; fairseq takes any file.
                                                      test_a_last_checkpoint_that_was_cut_short_is_not_loaded
trained_options   trainer.Trainer.load_checkpoint     Refuses other options than those in the checkpoint, where they
                                                      are part of the model; fairseq takes those of the command line.
                                                      test_every_option_is_either_part_of_the_model_or_free
stopping          fairseq_cli.train                   Remembers that a run was over; fairseq would train on.
                                                      test_a_run_that_is_over_stays_so
best_metric       fairseq_cli.train                   Looks for --best-checkpoint-metric before training; fairseq
                                                      does so after the first validation.
                                                      test_wrong_use
loading_models    checkpoint_utils                    Tells what is wrong with a file, reads weights without history,
                                                      and splits --path a.pt:b.pt, which fairseq-eval-lm forgets.
                                                      test_probabilities_are_averaged
overrides         checkpoint_utils                    Refuses unknown names in --model-overrides, which fairseq drops.
                                                      test_unknown_overrides_are_refused
fusion            fairseq_cli.generate --lm-path      Refuses a language model with another dictionary, whose scores
                                                      fairseq would add to those of other symbols.
                                                      test_the_dictionary_has_to_be_the_same
standard_streams  fairseq_cli.interactive             Reads and prints UTF-8 in every locale, and any bytes; fairseq
                                                      ends at the first byte that is not UTF-8.
                                                      test_a_byte_model_reads_lines_as_they_are
================  ==================================  ================================================================

:func:`install` replaces functions of fairseq, once. Four modules act at other times: ``user_dir`` when this package is
imported, ``stray_lines`` before it imports fairseq, ``standard_streams`` when a task of this package is about to read
or print text, ``hydra`` when a run begins. All others are called by the replaced functions or by the task.

Three small workarounds lie where they are needed. ``setup.py`` leaves a folder beside fairseq's, where fairseq looks
for ``--user-dir fairseq_expire``. ``tasks/options.py`` declares ``--save-memory`` itself, since fairseq would make a
flag that turns it off. The decoder in ``models/memory_lm.py`` has an attribute ``adaptive_softmax``, which fairseq sets
and reads.

For a task that is no :class:`~fairseq_expire.fairseq_patches.patched_task.PatchedTask`, fairseq behaves as before, with
these exceptions: clear errors for files that are no checkpoints, checkpoints without history, ``argparse.Namespace`` in
a checkpoint, unknown ``--model-overrides`` of ``fairseq-validate``, and stray lines.
"""

import functools


@functools.cache
def install() -> None:
    """Replaces functions of fairseq, once. Called when this package registers with fairseq."""
    # Imported here, because this package is imported with fairseq_expire itself, which does without fairseq.
    from fairseq_expire.fairseq_patches import loading_models, meters, resuming, run_options, saving

    for module in (meters, run_options, saving, resuming, loading_models):
        module.install()

"""Every fault that a run must survive: what must happen, and the tests that inject it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """``tests`` are pytest's names below tests/, of a function or of one of its cases. ``left`` says what no test here
    injects and why; a fault without tests has nothing else."""

    id: str
    fault: str
    must: str
    tests: tuple[str, ...] = ()
    left: str = ""


RESUME, RESUME_RL = "recipes/test_resume.py::", "recipes/test_resume_rl.py::"
FILES, HTTP, LOAD = "training/test_checkpoint_files.py::", "rollout/test_http.py::", "models/test_load.py::"
SIGNAL = RESUME_RL + "test_a_signal_stops_after_the_step"
KILLED = RESUME_RL + "test_a_killed_run_goes_on"
DAMAGED = RESUME + "test_a_damaged_checkpoint_is_passed_over_for_the_one_before"
ISOLATED, SKIPS = "rollout/test_isolated.py::", "recipes/test_skips.py::"
TROUBLED = "faults/test_reward_server.py::test_troubles_that_pass_change_no_number"
SAME = "the next process goes on bit for bit"
REPLACED = "faults/test_engines.py::test_an_engine_that_dies_is_replaced"
LOST, HANGS = "cluster/test_engines.py::", "faults/test_hangs.py::"
OUTSIDE = "faults/test_outside.py::"
PULSE = "training/test_pulse.py::test_ranks_that_hang_end_the_others_with_the_stacks_of_all"

FAULTS = (
    Fault(
        "R01",
        "kill −9 of the driver after a rollout",
        SAME,
        (
            f"{KILLED}[openrlhf.training.ppo:add_rewards-4-gae]",
            f"{KILLED}[openrlhf.training.ppo:add_rewards-4-group_norm]",
        ),
    ),
    Fault(
        "R02",
        "kill −9 of the driver inside an optimizer step",
        SAME,
        (
            f"{KILLED}[openrlhf.training.update:optimizer_step-20-gae]",
            f"{KILLED}[openrlhf.training.update:optimizer_step-20-group_norm]",
            f"{RESUME_RL}test_an_average_and_a_frozen_actor_go_on",
            f"{RESUME}test_every_command_goes_on_after_a_kill",
            f"{RESUME}test_two_ranks_go_on_after_a_kill",
            "cluster/test_resume.py::test_a_run_goes_on_bit_for_bit",
        ),
    ),
    Fault(
        "R03",
        "kill −9 of the driver while it writes a checkpoint",
        "the checkpoint before it is used, and " + SAME,
        (
            f"{KILLED}[openrlhf.training.checkpoint_files:publish-2-gae]",
            f"{RESUME}test_a_kill_inside_a_checkpoint",
            f"{FILES}test_what_a_dead_run_left_is_swept_away",
        ),
    ),
    Fault(
        "R04",
        "kill −9 of the driver between a checkpoint's name and the pointer",
        "the new checkpoint is used, and " + SAME,
        (f"{RESUME}test_a_kill_inside_a_checkpoint[openrlhf.training.checkpoint_files:_flush_folder-5-6]",),
    ),
    Fault(
        "R05",
        "kill −9 of an idle training rank",
        "the run ends in time with its name and starts again",
        (
            f"{HANGS}test_r05_an_idle_rank_that_dies_ends_whatever_is_waited_for",
            "faults/test_restarts.py::test_r05_a_run_that_loses_an_idle_rank_says_so_and_starts_again",
            "faults/test_restarts.py::test_a_killed_driver_starts_again_from_its_checkpoint",
        ),
    ),
    Fault(
        "R06",
        "kill −9 of a training rank in a collective",
        "as R05",
        (
            f"{HANGS}test_r06_a_rank_that_dies_in_a_collective_is_named",
            "faults/test_restarts.py::test_r06_the_launcher_starts_a_supervised_run_again_that_lost_a_rank",
            "cluster/test_roles.py::test_a_role_that_dies_ends_the_run_with_its_name",
        ),
    ),
    Fault("R07", "kill −9 of an idle engine", "it is replaced and its requests are sent again", (f"{REPLACED}[R07]",)),
    Fault("R08", "kill −9 of an engine while it samples", "as R07, the same samples", (f"{REPLACED}[R08]",)),
    Fault("R09", "kill −9 of an engine in a weight sync", "as R07, with the right weights", (f"{REPLACED}[R09]",)),
    Fault(
        "R10",
        "an engine's core is dead, its actor is alive",
        "as R07",
        (
            "faults/test_core.py::test_r10_an_engine_whose_worker_died_is_replaced",
            f"{LOST}test_only_what_a_lost_engine_was_asked_for_is_asked_again",
        ),
    ),
    Fault(
        "R11",
        "all engines die at once",
        "they start again; after three times a stop with a checkpoint",
        (
            f"{REPLACED}[R11]",
            f"{LOST}test_after_three_failures_in_a_row_the_engines_are_lost",
            "faults/test_engines_lost.py::test_what_was_learnt_is_saved",
        ),
    ),
    Fault(
        "R12",
        "an engine hangs (SIGSTOP)",
        "at the deadline it counts as dead",
        (f"{REPLACED}[R12]", f"{HANGS}test_r12_an_engine_that_hangs_is_ended"),
    ),
    Fault(
        "R13",
        "a training rank hangs (SIGSTOP)",
        "an end at the deadline, with the stacks of all ranks",
        (f"{HANGS}test_r13_a_rank_that_hangs_is_named_and_all_stacks_are_written", PULSE),
    ),
    Fault(
        "R14",
        "a host thread waits for ever",
        "as R13",
        (f"{HANGS}test_r14_stacks_show_where_a_host_thread_waits", PULSE),
    ),
    Fault(
        "R15",
        "SIGTERM in a rollout",
        "the step ends, a checkpoint is written, code 0, and " + SAME,
        (f"{SIGNAL}[openrlhf.rollout.collect:make_sample-20-3]",),
    ),
    Fault(
        "R16",
        "SIGTERM in an optimizer step",
        "as R15",
        (
            f"{SIGNAL}[openrlhf.training.update:optimizer_step-20-3]",
            f"{RESUME}test_a_signal_ends_the_step_writes_a_checkpoint_and_says_how_to_go_on",
            f"{RESUME}test_all_ranks_stop_after_the_same_step_when_one_gets_a_signal",
        ),
    ),
    Fault(
        "R17",
        "SIGTERM while a checkpoint is written",
        "as R15, without another step",
        (f"{SIGNAL}[openrlhf.training.checkpoint_files:publish-1-2]",),
    ),
    Fault(
        "R18",
        "SIGTERM twice",
        "the second one ends the process at once, and " + SAME,
        (
            f"{RESUME_RL}test_a_second_signal_ends_the_process_at_once",
            "training/test_signals.py::test_the_first_asks_and_the_second_ends_the_process",
            "training/test_signals.py::test_a_launcher_that_passes_on_what_the_terminal_sent_is_one_signal",
        ),
    ),
    Fault(
        "R19",
        "a truncated file in the newest checkpoint",
        "it says so and uses the one before",
        (f"{DAMAGED}[truncated]",),
    ),
    Fault("R20", "an empty file in the newest checkpoint", "as R19", (f"{DAMAGED}[zero bytes]",)),
    Fault(
        "R21",
        "the file of a rank is missing in the newest checkpoint",
        "as R19",
        (f"{DAMAGED}[missing]", f"{FILES}test_a_missing_rank_is_not_committed"),
    ),
    Fault(
        "R22",
        "a flipped bit in the newest checkpoint",
        "as R19; with no other one a sentence",
        (
            f"{DAMAGED}[flipped bit]",
            f"{DAMAGED}[manifest]",
            f"{FILES}test_damage_is_named",
            f"{RESUME}test_all_of_them_damaged_is_refused",
        ),
    ),
    Fault(
        "R23",
        "the pointer names a folder that is not there",
        "the newest complete checkpoint is found",
        (f"{RESUME}test_the_newest_is_found_whatever_the_pointer_says",),
    ),
    Fault(
        "R24",
        "no room on the disk for a checkpoint",
        "older ones stay, training goes on; three in a row end the run",
        (
            f"{RESUME}test_a_full_disk_costs_a_checkpoint_and_not_the_run",
            f"{RESUME}test_three_failures_in_a_row_end_the_run",
            f"{FILES}test_a_disk_without_room_says_so",
            "training/test_best.py::test_a_disk_that_does_not_take_it_costs_the_folder_alone",
        ),
    ),
    Fault(
        "R25",
        "no room on the disk for logs",
        "training goes on",
        (
            "training/test_log.py::test_a_full_disk_does_not_end_the_run",
            "training/test_log.py::test_tensorboard_on_a_full_disk_does_not_end_the_run",
            "cli/test_output.py::test_nothing_is_said_and_nothing_ends",
        ),
    ),
    Fault(
        "R26",
        "an output folder that cannot be written",
        "refused before a model is loaded",
        (
            "recipes/test_refusals.py::test_a_folder_that_cannot_be_written_is_named_before_training",
            f"{RESUME}test_a_folder_that_cannot_be_written_is_refused_before_anything_is_loaded",
        ),
    ),
    Fault(
        "R27",
        "the reward server refuses connections for a while",
        "it is asked again with growing pauses; bit for bit",
        (TROUBLED, f"{HTTP}test_a_server_that_starts_later_is_found"),
    ),
    Fault(
        "R28",
        "the reward server answers 503 with Retry-After",
        "as R27",
        (TROUBLED, f"{HTTP}test_what_passes_is_asked_again"),
    ),
    Fault(
        "R29",
        "the reward server answers byte by byte",
        "as R27; the time for a request is kept",
        (
            TROUBLED,
            f"{HTTP}test_what_does_not_pass_ends_in_time",
        ),
    ),
    Fault(
        "R30",
        "the reward server is down for good",
        "its samples are left out of their groups, or the run ends with a sentence",
        (
            "faults/test_reward_server.py::test_without_one_of_two_servers_a_run_learns_from_the_others_samples",
            f"{HTTP}test_what_does_not_pass_ends_in_time",
            f"{HTTP}test_nobody_there",
            f"{HTTP}test_nobody_for_long_is_the_end_before_the_time_for_a_request_is_over",
            "faults/test_engines_lost.py::test_what_was_learnt_is_saved",
            f"{OUTSIDE}test_a_killed_reward_server_ends_the_run_which_goes_on_when_there_is_one_again",
            "rollout/test_collect.py::test_samples_whose_reward_failed_are_left_out",
            "rollout/test_collect.py::test_no_reward_at_all_is_an_end",
            "recipes/test_serve_rm.py::test_rl_without_its_server_ends_with_a_sentence",
        ),
    ),
    Fault(
        "R31",
        "52 wrong answers of a reward server",
        "a sentence names address, field and value; nothing counts as 0; under 64 MiB of memory",
        (
            f"{HTTP}test_a_wrong_answer_names_the_address_the_field_and_the_value",
            f"{HTTP}test_what_is_wrong_is_not_asked_again",
            f"{HTTP}test_what_passes_is_asked_again",
            f"{HTTP}test_an_answer_that_is_too_large_is_read_no_further",
            "faults/test_reward_server.py::test_no_answer_takes_much_memory",
        ),
    ),
    Fault(
        "R32",
        "a reward function raises, says NaN, prints a lot, sleeps, forks, exits, crashes; an agent's environment dies",
        "the function's process ends, not the run; without the environment it ends with a checkpoint",
        (
            f"{OUTSIDE}test_a_killed_environment_ends_the_run_which_goes_on",
            f"{ISOLATED}test_what_it_does_wrong_is_named",
            f"{ISOLATED}test_what_it_prints_is_no_part_of_its_answer",
            f"{ISOLATED}test_a_copy_of_it_says_nothing",
            f"{ISOLATED}test_the_time_limit",
            f"{ISOLATED}test_a_fault_costs_its_own_sample_alone",
            f"{ISOLATED}test_what_it_started_ends_with_it",
            "rollout/test_rewards.py::test_a_wrong_answer_is_named",
            "rollout/test_sources.py::test_dropped_are_the_samples_at_fault_alone",
            "recipes/test_ppo_local.py::test_samples_without_a_reward_are_left_out",
        ),
    ),
    Fault(
        "R33",
        "NaN in the loss of a micro-batch",
        "every rank leaves the step out, the rows are named, several in a row end the run",
        (
            "training/test_update.py::test_a_loss_that_is_not_finite_costs_its_mini_batch_alone",
            "backends/test_local.py::test_a_gradient_that_is_not_finite_changes_nothing",
            f"{SKIPS}test_sft",
            f"{SKIPS}test_rl",
        ),
    ),
    Fault(
        "R34",
        "an infinite gradient on one rank at ZeRO 3",
        "every rank leaves the step out, no bit of the state changes",
        ("backends/test_deepspeed.py::test_a_gradient_that_is_not_finite_on_one_rank_changes_nothing_on_any",),
    ),
    Fault(
        "R35",
        "NaN in slots that a mask leaves out",
        "no bit of loss or gradient changes",
        (
            "training/test_update.py::test_slots_outside_the_action_mask_may_hold_nan",
            "training/test_update.py::test_elements_without_weight_may_be_anything",
            "algorithms/test_poison.py::test_per_token",
            "algorithms/test_poison.py::test_per_token_gradient",
            "algorithms/test_poison.py::test_per_row",
            "models/test_causal_lm.py::test_nan_in_padding_embeddings_reaches_nothing",
        ),
    ),
    Fault(
        "R36",
        "bad rows of data",
        "each is counted and reported with its number, or refused by it",
        (
            "data/test_bad_rows.py::test_a_row_without_text_is_left_out",
            "data/test_bad_rows.py::test_a_line_that_is_no_object_is_refused_with_its_file",
            "data/test_bad_rows.py::test_a_value_that_is_no_text_is_refused_with_its_row",
            "data/test_bad_rows.py::test_special_tokens_are_text_like_any",
            "data/test_bad_rows.py::test_a_million_characters_are_cut_and_counted",
            "data/test_fuzz.py::test_any_rows",
            "data/test_fuzz.py::test_half_a_character_costs_its_row_alone",
            "data/test_prompts.py::test_empty_prompts_are_dropped_and_ids_stay_row_numbers",
            "data/test_prompts.py::test_a_missing_column_is_named_with_row_and_flag",
            "data/test_load.py::test_a_broken_file_is_named_in_one_sentence",
            "data/test_sft.py::test_drops_are_counted_by_kind_with_the_first_row",
        ),
    ),
    Fault(
        "R37",
        "a prompt over the limit, an answer that meets it exactly, an answer of nothing",
        "the end of the prompt stays, truncation is told apart, an answer of nothing is in no loss and no baseline",
        (
            "data/test_prompts.py::test_of_a_long_prompt_the_end_is_kept_and_reported",
            "data/test_prompts.py::test_a_prompt_of_exactly_the_limit_is_whole",
            "backends/test_hf_generate.py::test_a_stop_token_at_the_very_limit_is_no_truncation",
            "algorithms/test_advantages.py::test_poison",
            "models/test_causal_lm.py::test_batch_without_action_tokens_is_zero_and_differentiable",
            "training/test_update.py::test_a_mini_batch_without_any_action_has_no_gradient",
        ),
    ),
    Fault(
        "R38",
        "odd tokenizers: no template, no pad, no eos, another vocabulary, a padded embedding",
        "a sentence, or the right numbers",
        (
            f"{LOAD}test_missing_pad_becomes_eos_with_a_line",
            f"{LOAD}test_tokenizer_without_eos_and_pad_is_refused",
            "data/test_chat.py::test_without_a_template_the_flag_is_named",
            "models/test_vocabulary.py::test_a_smaller_vocabulary_is_refused",
            "models/test_vocabulary.py::test_other_merges_are_refused_with_a_comparison",
            "models/test_distill.py::test_heads_padded_to_different_sizes",
            "recipes/test_ppo_local.py::test_an_embedding_that_is_padded_beyond_the_tokenizer",
        ),
    ),
    Fault(
        "R39",
        "a data set smaller than a batch, changed, in another order",
        "smaller batches; other rows are refused",
        (
            "data/test_sampler.py::test_a_data_set_smaller_than_the_batch",
            f"{RESUME}test_a_checkpoint_of_another_run_is_refused_naming_what_differs",
            f"{RESUME}test_rows_in_another_order_are_another_data_set",
        ),
    ),
    Fault(
        "R40",
        "a run goes on with another number of ranks or engines, ZeRO stage, micro-batch",
        "the same losses to rounding",
        (
            f"{RESUME}test_two_ranks_go_on_from_one_process",
            f"{RESUME}test_one_process_goes_on_from_two_ranks",
            f"{RESUME}test_what_may_change_between_two_runs",
            "backends/test_pieces.py::test_any_number_reads_what_any_number_wrote",
            "cluster/test_vllm.py::test_samples_do_not_depend_on_how_prompts_are_divided",
        ),
    ),
    Fault(
        "R41",
        "kill −9 of an asynchronous run with rollouts in flight",
        "each prompt is learned from once",
        (
            "recipes/test_async.py::test_a_killed_run_learns_from_each_prompt_once",
            "cluster/test_partial.py::"
            "test_a_run_that_is_killed_with_rollouts_in_their_middle_learns_from_each_prompt_once",
        ),
    ),
    Fault(
        "R42",
        "a weight sync that is interrupted",
        "the engine refuses to sample until the next one",
        ("cluster/test_vllm.py::test_after_an_interrupted_sync_the_engine_refuses_until_the_next_one",),
    ),
    Fault(
        "R43",
        "the clock jumps, a name is not found, a port is taken",
        "no effect, asked again, a sentence",
        (
            "faults/test_clock.py::test_a_run_under_a_clock_that_jumps_goes_on_exactly",
            "faults/test_clock.py::test_no_wait_is_measured_by_the_clock_on_the_wall",
            f"{FILES}test_the_newest_is_the_last_one_written_whatever_its_step_or_the_clock",
            f"{HTTP}test_an_unknown_host",
            "backends/test_reward_server.py::test_a_taken_port_is_named",
        ),
    ),
    Fault(
        "R44",
        "one reward or one engine is much slower than the others",
        "training does not wait for it",
        (
            "cluster/test_async.py::test_a_step_ends_while_the_next_rollout_waits_for_its_reward",
            "cluster/test_partial.py::test_every_rollout_is_broken_off_by_a_sync_and_goes_on",
        ),
    ),
    Fault(
        "R45",
        "Ray's head dies, its memory for objects is full",
        "the run ends with a sentence, and goes on from its checkpoint on a new Ray with the same numbers; "
        "objects go to the disk, and without room there the run ends with a sentence too",
        (
            "faults/test_ray_run.py::test_a_run_whose_ray_dies_goes_on_and_shows_nothing",
            f"{HANGS}test_r45_the_end_of_rays_head_is_told",
            "faults/test_object_store.py::test_r45_what_does_not_fit_goes_to_the_disk_and_comes_back",
            "faults/test_object_store.py::test_r45_without_room_on_the_disk_either_the_run_ends_with_a_sentence",
        ),
    ),
    Fault(
        "R46",
        "2,000 steps of RL",
        "memory grows by less than 1 %, open files and threads stay the same, no process is left",
        ("faults/test_soak.py::test_fifty_steps_in_one_process_leave_nothing_behind",),
        "the table has fifty steps in one process; 2,000 on Ray, vLLM and DeepSpeed are `make soak`, below",
    ),
)

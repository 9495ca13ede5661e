"""The ways in which reinforcement learning goes wrong without an error, as they befell others: each has tests, and
these exist. The tests that only notice, by breaking the code on purpose, are those of ``tests/certificate``."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LOSS, ADVANTAGES, PPO = (
    "objectives/test_reinforcement.py::",
    "algorithms/test_advantages.py::",
    "training/test_ppo.py::",
)
STATEMENTS, MUTANTS = "certificate/test_statements.py::", "certificate/test_mutants.py::"
MODEL, HF, VLLM = "models/test_causal_lm.py::", "backends/test_hf_generate.py::", "cluster/test_vllm.py::"
UPDATE, COLLECT, AGENTS = "training/test_update.py::", "rollout/test_collect.py::", "rollout/test_agents.py::"
GROUP, ROLES, PROMPTS = "cluster/test_group.py::", "cluster/test_roles.py::", "data/test_prompts.py::"
EVERY_INVARIANCE = STATEMENTS + "test_nothing_changes_a_gradient"
WHOLE_STEPS = PPO + "test_whole_steps_equal_the_slow_script"

SILENT_BUGS = {
    "a mean over each micro-batch or rank in place of the mini-batch": (
        EVERY_INVARIANCE,
        MUTANTS + "test_a_mean_over_each_micro_batch",
        MUTANTS + "test_a_mean_over_each_rank",
        UPDATE + "test_the_weights_after_real_steps_do_not_know_the_micro_batches",
        GROUP + "test_the_mini_batches_of_all_ranks_are_those_of_one",
        "recipes/test_ppo_local.py::test_micro_batches_and_packing_are_matters_of_speed",
    ),
    "log-probs, entropy or reference at another temperature than the sampling": (
        MODEL + "test_scores_and_gradients_equal_the_definition",
        MUTANTS + "test_a_temperature_that_is_forgotten",
        MUTANTS + "test_an_old_policy_at_another_temperature",
        HF + "test_log_probs_are_those_of_the_forward_at_the_temperature",
        VLLM + "test_sampled_log_probs_are_those_at_the_temperature",
    ),
    "log-probs of sampling and training on different footings, untold": (
        "cli/test_warnings.py::test_it_is_said_once_and_only_then",
        AGENTS + "test_a_narrower_top_p_is_warned_of_once",
        AGENTS + "test_what_an_executor_may_not_do",
    ),
    "a label shifted by one, the first token of an answer lost": (
        MODEL + "test_shift_on_five_tokens_by_hand",
        "models/test_value_head.py::test_scores_and_values_and_their_gradients_row_by_row",
        COLLECT + "test_the_engines_own_tokens_and_log_probs_are_kept",
    ),
    "a KL with the wrong sign, or both in the reward and in the loss": (
        PPO + "test_the_kl_alone_brings_the_policy_nearer",
        WHOLE_STEPS,
        LOSS + "test_policy_loss_equals_the_papers",
        "recipes/test_convergence.py::test_the_controller_holds_its_kl",
    ),
    "NaN in a masked slot, or an advantage outside the mask": (
        "algorithms/test_poison.py::test_per_token_gradient",
        ADVANTAGES + "test_poison",
        EVERY_INVARIANCE,
        MUTANTS + "test_multiplying_by_the_mask",
        UPDATE + "test_slots_outside_the_action_mask_may_hold_nan",
    ),
    "samples without an action in the baseline of their group": (
        ADVANTAGES + "test_a_sample_without_actions_does_not_move_the_others",
    ),
    "GAE over padding or the tokens of a tool": (
        "algorithms/test_returns.py::test_gaps_change_nothing",
        "backends/test_conversations.py::test_advantages_are_those_of_the_conversation_without_the_environment",
        WHOLE_STEPS,
    ),
    "the reward behind the end-of-text token, or lost where padding is that token": (
        "algorithms/test_rewards.py::test_reward_lands_on_the_last_action_token_only",
        "algorithms/test_rewards.py::test_last_token_by_hand",
        PPO + "test_the_reward_stands_on_an_eos_that_is_the_padding_too",
        EVERY_INVARIANCE,  # on the left as on the right
    ),
    "a prompt cut at the wrong end, an answer that counts as cut and is not": (
        PROMPTS + "test_of_a_long_prompt_the_end_is_kept_and_reported",
        PROMPTS + "test_a_prompt_of_exactly_the_limit_is_whole",
        HF + "test_a_stop_token_at_the_very_limit_is_no_truncation",
        HF + "test_a_stop_string_ends_its_own_response_and_stays_in_it",
        VLLM + "test_a_stop_token_ends_the_response_and_stays_in_it",
        AGENTS + "test_the_limit_of_length_cuts_answers_and_ends_the_conversation",
    ),
    "answers decoded and encoded again on their way to the trainer": (
        AGENTS + "test_random_tokens_stay_as_they_were_sampled",
        AGENTS + "test_three_turns_token_for_token",
        COLLECT + "test_the_engines_own_tokens_and_log_probs_are_kept",
    ),
    "an engine that samples from other weights than those that learn": (
        VLLM + "test_two_syncs_in_a_row_of_one_call_each",
        VLLM + "test_a_missing_parameter_is_an_error",
        VLLM + "test_a_tied_output_head_follows_the_embedding",
        VLLM + "test_after_an_interrupted_sync_the_engine_refuses_until_the_next_one",
        ROLES + "test_any_placement_gives_the_numbers_of_one_process",
        LOSS + "test_the_log_probs_of_the_engine_are_compared",
        PPO + "test_an_engine_that_samples_from_another_policy_shows_in_the_first_step",
        "cluster/test_partial.py::test_every_rollout_is_broken_off_by_a_sync_and_goes_on",
        "backends/test_conversations.py::test_the_trainer_agrees_with_the_engine_on_every_turn",
    ),
    "an adapter merged into the weights that drifts, or never reaches the engine": (
        "models/test_merged.py::test_the_model_is_bit_for_bit_the_same_after_a_hundred_merges",
        "models/test_merged.py::test_merged_weights_are_those_of_peft",
        "backends/test_deepspeed_adapters.py::test_merged_weights_are_those_of_peft_and_a_hundred_merges_change_no_bit",
        ROLES + "test_an_adapter_is_merged_for_the_engines_and_taken_off_for_the_reference",
        MUTANTS + "test_an_adapter_that_stays_on",
    ),
    "a schedule that ends before the last step, or after it": (
        PPO + "test_the_schedule_ends_with_the_last_optimizer_step",
        PPO + "test_the_schedule_of_the_actor_begins_when_it_learns",
        "training/test_fit.py::test_the_schedule_ends_with_the_last_step",
    ),
    "a run that goes on elsewhere than it stopped": (
        "certificate/test_runs.py::test_a_run_that_is_stopped_goes_on_as_if_it_were_not",
        "recipes/test_resume_rl.py::test_a_killed_run_goes_on",
        "recipes/test_ppo_filtering.py::test_it_trains_on_prompts_between_and_goes_on_exactly",
        "cluster/test_resume.py::test_a_run_goes_on_bit_for_bit",
    ),
    "a group torn apart or mixed with another, a group of one, a group of equal rewards": (
        COLLECT + "test_samples_of_a_prompt_stand_together_in_the_order_of_the_prompts",
        COLLECT + "test_a_prompt_twice_in_a_batch_makes_two_groups",
        COLLECT + "test_samples_whose_reward_failed_are_left_out",
        "training/test_filtering.py::test_missing_groups_are_asked_for_until_the_batch_is_full",
        ADVANTAGES + "test_order_of_rows_does_not_matter",
        ADVANTAGES + "test_names_of_groups_do_not_matter",
        ADVANTAGES + "test_equal_rewards_teach_nothing",
        ADVANTAGES + "test_every_entry_on_every_shape",
        "config/test_rules.py::test_every_group_estimator_needs_a_group",
        EVERY_INVARIANCE,  # the order of the examples
        MUTANTS + "test_a_weight_that_knows_its_place",
    ),
    "rollouts that are never learned from, or twice": (
        PPO + "test_each_prompt_comes_once_an_episode",
        GROUP + "test_merge_undoes_shard",
        GROUP + "test_filled_rows_carry_no_loss",
        "training/test_filtering.py::test_what_was_accepted_is_used_when_the_prompts_end",
        "recipes/test_async.py::test_a_killed_run_learns_from_each_prompt_once",
        "cluster/test_partial.py::test_every_rollout_is_broken_off_by_a_sync_and_goes_on",
    ),
    "steps, sums or log-softmax in bfloat16": (
        "backends/test_local.py::test_small_steps_add_up_under_bf16",
        "backends/test_deepspeed_adapters.py::test_in_one_process_a_thousand_steps_of_a_millionth_move_a_weight",
        "backends/test_deepspeed_adapters.py::test_steps_too_small_for_bfloat16_add_up",
        MODEL + "test_bfloat16_head_answers_in_float32_with_usable_gradients",
        "algorithms/test_masked.py::test_statistics_of_float32_are_accumulated_in_float64",
    ),
    "a failed reward that counts as a reward of 0": (
        COLLECT + "test_samples_whose_reward_failed_are_left_out",
        "rollout/test_sources.py::test_dropped_are_the_samples_at_fault_alone",
        "rollout/test_rewards.py::test_a_wrong_answer_is_named",
        "rollout/test_rewards.py::test_a_score_of_zero_is_a_score",
        "rollout/test_http.py::test_a_wrong_answer_names_the_address_the_field_and_the_value",
    ),
    "rewards normalised by numbers that are not there": (
        "check/test_models.py::test_reward_models_that_cannot_be_normalised",
        "training/test_members.py::test_normalised_scores_have_the_stored_statistics",
    ),
    "a correction that corrects nothing, a run that learns from noise": (
        PPO + "test_whole_steps_of_other_losses_and_corrections",
        "recipes/test_convergence.py::test_not_weighing_them_is_visibly_worse",
        "recipes/test_convergence.py::test_shuffled_rewards_teach_nothing",
    ),
}


@cache
def functions(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("bug", SILENT_BUGS)
def test_its_tests_exist(bug: str) -> None:
    missing = []
    for name in SILENT_BUGS[bug]:
        file, _, function = name.partition("::")
        if function not in functions(TESTS / file):
            missing.append(name)
    assert SILENT_BUGS[bug] and missing == []

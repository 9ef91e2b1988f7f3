"""The ways in which `mutants.py` breaks the package, and the tests that notice.

A new branch, sign or guard deserves a row. The text that a row replaces has to occur
once in its module; who changes such a line changes the row, and
`tests/test_mutants.py` says so. Rows name the fewest tests that should fail, on the
cheapest backend: PyTorch, except for what is another's own.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Mutant:
    """A way to break the package.

    Attributes:
        name: what is broken, as a word for `-k`.
        file: the module, below `keras_bnx/`.
        old: text that occurs once in it.
        new: what takes its place.
        tests: pytest's names of the tests that should fail, the likeliest first.
        backend: where they are run.
        reason: why no test can notice; `None` where one has to.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple
    backend: str = "torch"
    reason: str = None

    def broken(self, package):
        """The text of the module in the folder of the package, with the mutation.

        Raises:
            ValueError: unless the old text occurs exactly once, so that a row can't
                outlive the line that it breaks.
        """
        text = (package / self.file).read_text()
        if text.count(self.old) != 1 or self.old == self.new:
            raise ValueError(
                f"The mutant {self.name!r} is stale: its old text has to occur once in "
                f"{self.file}, and its new text has to differ. Received: "
                f"{text.count(self.old)} times {self.old!r}. Correct its row."
            )
        return text.replace(self.old, self.new)


CASES = "tests/test_batch_normalization.py"
OPS, BACKEND = "tests/ops", "tests/backends"
ARGUMENTS_TEST = "tests/test_arguments.py"
AVERAGES, FILES = "tests/test_averages.py", "tests/test_files.py"
DERIVATIVES = "tests/test_derivatives.py"
STATISTICS, REPLICAS = f"{OPS}/test_statistics.py", f"{OPS}/test_replicas.py"
CONTRACT = f"{BACKEND}/test_contract.py"
INTEROP = "tests/tools/test_interop.py"
TORCH_INTEROP = "tests/tools/test_torch_interop.py"
CONVERSION, FREEZING = "tests/tools/test_conversion.py", "tests/tools/test_freezing.py"
SEEN_AS_ONE = (
    "tests/test_combinations.py::test_rows_that_are_seen_as_one_meet_every_other_option"
)
FOLD = "tests/tools/test_folding.py::test_"
ACTIVATION = "tests/test_activation.py::test_"
COMBINATIONS = "tests/test_combinations.py::test_what_has_failed_once_is_the_oracles"


def outputs(*cases, implementation="auto", training=True):
    """Outputs and statistics of some of the table's cases."""
    name = f"{CASES}::test_outputs_and_statistics_are_the_oracles"
    return tuple(f"{name}[{implementation}-{training}-{case}]" for case in cases)


def gradients(*cases, implementation="auto"):
    """Their gradients."""
    name = f"{CASES}::test_gradients_are_the_oracles"
    return tuple(f"{name}[{implementation}-{case}]" for case in cases)


def gradients_at_inference(*cases, implementation="auto"):
    """Their gradients where the statistics are fixed."""
    name = f"{CASES}::test_gradients_at_inference_are_the_oracles"
    return tuple(f"{name}[{implementation}-{case}]" for case in cases)


def accuracy(*cases):
    """Errors in plain numbers, at any mean."""
    name = "tests/test_accuracy.py::test_errors_do_not_grow_with_the_mean"
    return tuple(f"{name}[{case}]" for case in cases)


def combination(name):
    """A call against the oracle that a mutant once survived."""
    return (f"tests/test_survivors.py::test_a_combination_is_the_oracles[{name}]",)


def survivors(*tests):
    return tuple(f"tests/test_survivors.py::{test}" for test in tests)


def behaviour(*tests):
    return tuple(f"tests/test_behaviour.py::{test}" for test in tests)


def only(*tests):
    return tests


STEPS = [
    # Bounds.
    Mutant(
        "at_least_is_at_most",
        "ops/bounds.py",
        "ops.where(x < bound, bound, x)",
        "ops.where(x > bound, bound, x)",
        only(f"{OPS}/test_bounds.py"),
    ),
    Mutant(
        "at_most_is_at_least",
        "ops/bounds.py",
        "ops.where(x > bound, bound, x)",
        "ops.where(x < bound, bound, x)",
        only(f"{OPS}/test_bounds.py"),
    ),
    Mutant(
        "a_bound_is_rounded_to_float32",
        "ops/bounds.py",
        "return ops.full_like(x, bound)",
        'return ops.cast(ops.cast(bound, "float32"), x.dtype)',
        only(f"{OPS}/test_bounds.py"),
    ),
    # Judging, choosing and merging moments.
    Mutant(
        "merge_forgets_the_variance_between_parts",
        "ops/statistics.py",
        "merged.variance + ops.square(residual)",
        "merged.variance",
        only(f"{STATISTICS}::test_merged_moments_are_those_of_the_batch"),
    ),
    Mutant(
        "merge_weighs_means_alike",
        "ops/statistics.py",
        "residual = total(merged.count * residual) / n",
        "residual = total(residual)",
        only(
            f"{STATISTICS}::test_merged_moments_are_those_of_the_batch",
            *outputs("virtual_remainder"),
        ),
    ),
    Mutant(
        "merge_weighs_variances_alike",
        "ops/statistics.py",
        "second = total(merged.count * (merged.variance + ops.square(residual))) / n",
        "second = total(merged.variance + ops.square(residual)) / batches",
        only(f"{STATISTICS}::test_merged_moments_are_those_of_the_batch"),
    ),
    Mutant(
        "merge_counts_one_part",
        "ops/statistics.py",
        "return value * batches",
        "return value",
        only(f"{STATISTICS}::test_merged_moments_are_those_of_the_batch"),
    ),
    Mutant(
        "merge_takes_what_is_not_finite",
        "ops/statistics.py",
        "exists = ops.logical_and(part.size > 0, ops.isfinite(part.variance))",
        "exists = part.size > 0",
        only(
            f"{STATISTICS}::test_what_is_not_finite_is_left_out_or_makes_the_rest_so",
        ),
    ),
    Mutant(
        "merge_looks_at_all_parts",
        "ops/statistics.py",
        "if not leave_out or part.all_finite:",
        "if False:",
        only(
            f"{STATISTICS}::test_what_is_not_finite_is_left_out_or_makes_the_rest_so",
            *behaviour("test_one_bad_element_spoils_no_statistics"),
        ),
        reason="a single part isn't looked at then, and of several all are known to be "
        "finite",
    ),
    Mutant(
        "merge_differentiates_its_shift",
        "ops/statistics.py",
        "shift = ops.stop_gradient(shift)",
        "shift = shift + 0.0",
        only(STATISTICS),
        reason="the shift cancels out of mean and variance: its gradient is 0, and to "
        "stop it saves work only",
    ),
    Mutant(
        "unbiased_is_biased_with_a_mask",
        "ops/statistics.py",
        "ops.where(exists, moments.count - 1.0, one)",
        "ops.where(exists, moments.count, one)",
        outputs("unbiased_weights"),
    ),
    Mutant(
        "unbiased_is_biased",
        "ops/statistics.py",
        "max(moments.count - 1, 1)",
        "max(moments.count, 1)",
        outputs("unbiased"),
    ),
    Mutant(
        "unbiased_variance_of_less_than_one",
        "ops/statistics.py",
        "exists = moments.count > 1",
        "exists = moments.count > 0",
        only(
            f"{STATISTICS}::"
            "test_an_unbiased_variance_exists_where_more_than_one_counts",
        ),
    ),
    Mutant(
        "known_conditions_are_computed",
        "ops/conditions.py",
        "if a is True or b is False:",
        "if False:",
        only(f"{OPS}/test_conditions.py::test_known_conditions_are_not_computed"),
    ),
    Mutant(
        "true_and_b_is_true",
        "ops/conditions.py",
        "    if a is True or b is False:\n        return b\n",
        "    if a is True or b is False:\n        return a\n",
        only(f"{OPS}/test_conditions.py::test_known_conditions_are_not_computed"),
    ),
    Mutant(
        "a_and_true_is_true",
        "ops/conditions.py",
        "    if b is True or a is False:\n        return a\n",
        "    if b is True or a is False:\n        return b\n",
        only(f"{OPS}/test_conditions.py::test_known_conditions_are_not_computed"),
    ),
    Mutant(
        "both_is_either",
        "ops/conditions.py",
        "return ops.logical_and(a, b)",
        "return ops.logical_or(a, b)",
        behaviour("test_a_batch_without_elements_changes_nothing"),
    ),
    Mutant(
        "select_takes_b_where_it_is_known",
        "ops/conditions.py",
        "    if condition is True:\n        return a\n",
        "    if condition is True:\n        return b\n",
        only(f"{OPS}/test_conditions.py::test_known_conditions_are_not_computed"),
    ),
    Mutant(
        "select_takes_a_where_it_is_known",
        "ops/conditions.py",
        "return b if condition is False",
        "return a if condition is False",
        only(f"{OPS}/test_conditions.py::test_known_conditions_are_not_computed"),
    ),
    Mutant(
        "select_swaps_its_choices",
        "ops/conditions.py",
        "ops.where(condition, a, b)",
        "ops.where(condition, b, a)",
        only(
            f"{STATISTICS}::test_other_statistics_take_the_place_of_what_is_not_usable",
        ),
    ),
    # Averages over time.
    Mutant(
        "momentum_is_the_new_ones_weight",
        "averages.py",
        "        return 1.0 - momentum\n",
        "        return momentum\n",
        only(AVERAGES),
    ),
    Mutant(
        "cumulative_counts_one_more",
        "averages.py",
        "_exact_first(1.0 / updates, updates)",
        "_exact_first(1.0 / (updates + 1.0), updates)",
        only(f"{AVERAGES}::test_the_cumulative_average_weighs_all_alike"),
    ),
    Mutant(
        "debias_divides_nothing_out",
        "averages.py",
        "_exact_first((1.0 - momentum) / gone, updates)",
        "_exact_first(1.0 - momentum + 0.0 * gone, updates)",
        only(
            f"{AVERAGES}::test_the_weight_of_the_newest_divides_the_initial_value_out",
        ),
    ),
    Mutant(
        "the_first_two_have_all_the_weight",
        "averages.py",
        "ops.where(updates > 1,",
        "ops.where(updates > 2,",
        only(
            f"{AVERAGES}::test_the_weight_of_the_newest_divides_the_initial_value_out",
        ),
    ),
    Mutant(
        "the_moving_mean_loses_the_residual",
        "averages.py",
        "difference = difference + moments.residual",
        "difference = difference + 0.0 * moments.residual",
        only(f"{AVERAGES}::test_update_mean_by_hand"),
    ),
    Mutant(
        "the_moving_mean_steps_away",
        "averages.py",
        "moving + ops.sign(difference) * smallest",
        "moving - ops.sign(difference) * smallest",
        only(
            f"{AVERAGES}::"
            "test_the_mean_comes_near_where_its_steps_are_lost_in_rounding",
        ),
    ),
    Mutant(
        "the_moving_mean_stands_still",
        "averages.py",
        "return ops.where(stands, moving + ops.sign(difference) * smallest, new)",
        "return new",
        only(
            f"{AVERAGES}::"
            "test_the_mean_comes_near_where_its_steps_are_lost_in_rounding",
        ),
    ),
    Mutant(
        "a_weight_of_0_is_a_step",
        "averages.py",
        "    stands = ops.logical_and(stands, step != 0.0)\n",
        "",
        only(
            f"{AVERAGES}::"
            "test_the_mean_comes_near_where_its_steps_are_lost_in_rounding",
        ),
    ),
    Mutant(
        "a_moving_mean_that_is_near_steps_on",
        "averages.py",
        "ops.abs(difference) > smallest)",
        "ops.abs(difference) > 0.0)",
        only(f"{AVERAGES}::test_a_mean_that_is_the_nearest_number_stays"),
    ),
    Mutant(
        "scales_move_by_a_difference",
        "averages.py",
        "return moving * (1.0 - weight) + new * weight",
        "return moving + weight * (new - moving)",
        only(
            f"{AVERAGES}::test_update_scale_keeps_small_values_beside_large_ones",
        ),
    ),
    Mutant(
        "scales_swap_their_weights",
        "averages.py",
        "return moving * (1.0 - weight) + new * weight",
        "return moving * weight + new * (1.0 - weight)",
        only(AVERAGES),
    ),
    Mutant(
        "an_imported_variance_is_overwritten",
        "averages.py",
        "return at_most(at_least(moving_stddev, lower), upper)",
        "return moving_stddev",
        only(
            f"{AVERAGES}::"
            "test_the_deviation_is_kept_unless_the_variance_says_otherwise",
        ),
    ),
    Mutant(
        "statistics_are_never_kept",
        "averages.py",
        "return _kept",
        "return False",
        only(
            f"{AVERAGES}::test_passes_that_keep_the_statistics_differ_in_nothing_else",
        ),
    ),
    # Renorm.
    Mutant(
        "r_is_its_inverse",
        "ops/renorm.py",
        "    r = stddev / renorm_stddev\n",
        "    r = renorm_stddev / stddev\n",
        only(f"{OPS}/test_renorm.py::test_by_hand"),
    ),
    Mutant(
        "d_subtracts_the_residual",
        "ops/renorm.py",
        "(moments.shift - renorm_mean) + moments.residual",
        "(moments.shift - renorm_mean) - moments.residual",
        only(f"{OPS}/test_renorm.py::test_by_hand"),
    ),
    Mutant(
        "d_is_in_units_of_the_batch",
        "ops/renorm.py",
        "+ moments.residual) / renorm_stddev",
        "+ moments.residual) / stddev",
        only(f"{OPS}/test_renorm.py::test_by_hand"),
    ),
    Mutant(
        "r_and_d_leave_epsilon_out",
        "ops/renorm.py",
        "ops.sqrt(moments.variance + epsilon)",
        "ops.sqrt(moments.variance)",
        only(f"{OPS}/test_renorm.py::test_by_hand"),
    ),
    Mutant(
        "rmin_bounds_r_above",
        "ops/renorm.py",
        "r = at_least(r, rmin)",
        "r = at_most(r, rmin)",
        only(f"{OPS}/test_renorm.py::test_clipping"),
    ),
    Mutant(
        "rmax_is_ignored",
        "ops/renorm.py",
        "r = at_most(r, rmax)",
        "r = r * 1.0",
        only(f"{OPS}/test_renorm.py::test_clipping"),
    ),
    Mutant(
        "d_is_unbounded_below",
        "ops/renorm.py",
        "at_most(at_least(d, -dmax), dmax)",
        "at_most(d, dmax)",
        only(f"{OPS}/test_renorm.py::test_d_is_clipped_below"),
    ),
    Mutant(
        "a_stored_deviation_of_0_divides",
        "ops/renorm.py",
        "renorm_stddev = at_least(renorm_stddev, math.sqrt(epsilon))",
        "math.sqrt(epsilon)",
        only(f"{OPS}/test_renorm.py::test_a_stored_deviation_of_zero_divides_nothing"),
    ),
    Mutant(
        "r_is_differentiated",
        "ops/renorm.py",
        "ops.stop_gradient(r),",
        "r,",
        gradients("renorm", implementation="generic"),
    ),
    Mutant(
        "d_is_differentiated",
        "ops/renorm.py",
        ", ops.stop_gradient(d)",
        ", d",
        gradients("renorm", implementation="generic"),
    ),
    # Replicas.
    Mutant(
        "each_replica_adds_to_the_first_row",
        "ops/replicas.py",
        "ops.arange(replicas.count) == replicas.index",
        "ops.arange(replicas.count) == 0",
        only(f"{OPS}/test_replicas.py"),
    ),
    Mutant(
        "groups_overlap",
        "ops/replicas.py",
        "replicas.index // size * size",
        "replicas.index",
        only(f"{OPS}/test_replicas.py::test_groups_are_consecutive"),
    ),
    Mutant(
        "groups_need_not_fit",
        "ops/replicas.py",
        "if replicas.count % size:",
        "if False:",
        only(f"{OPS}/test_replicas.py::test_groups_have_to_fit"),
    ),
    Mutant(
        "a_groups_gradient_is_of_all",
        "ops/replicas.py",
        "        if self.size is True:\n"
        "            return self.replicas.all_reduce_sum(value)\n",
        "        if self.size:\n"
        "            return self.replicas.all_reduce_sum(value)\n",
        only(f"{REPLICAS}::test_a_groups_sum_is_of_its_replicas_alone"),
    ),
    Mutant(
        "one_replica_is_synchronized",
        "ops/replicas.py",
        "if replicas is None:",
        "if replicas is None and not synchronized:",
        only(f"{REPLICAS}::test_who_joins_is_chosen_once"),
    ),
    Mutant(
        "virtual_batches_are_synchronized",
        "ops/replicas.py",
        "if synchronized and not virtual:",
        "if synchronized:",
        only(f"{REPLICAS}::test_who_joins_is_chosen_once"),
    ),
    Mutant(
        "all_replicas_are_synchronized",
        "ops/replicas.py",
        "if synchronized and not virtual:",
        "if not virtual:",
        only(f"{REPLICAS}::test_who_joins_is_chosen_once"),
    ),
    Mutant(
        "synchronized_virtual_batches_merge_nothing",
        "ops/replicas.py",
        "return MovingOnly(replicas) if synchronized or replicas.merges_moving "
        "else Alone()",
        "return MovingOnly(replicas) if replicas.merges_moving else Alone()",
        only(f"{REPLICAS}::test_who_joins_is_chosen_once"),
    ),
    Mutant(
        "replicas_that_are_not_synchronized_merge_nothing",
        "ops/replicas.py",
        "return MovingOnly(replicas) if synchronized or replicas.merges_moving "
        "else Alone()",
        "return MovingOnly(replicas) if synchronized else Alone()",
        only(f"{REPLICAS}::test_who_joins_is_chosen_once"),
    ),
    Mutant(
        "replicas_merge_unasked",
        "ops/replicas.py",
        "return MovingOnly(replicas) if synchronized or replicas.merges_moving "
        "else Alone()",
        "return MovingOnly(replicas)",
        only(f"{REPLICAS}::test_who_joins_is_chosen_once"),
    ),
    Mutant(
        "a_group_moves_its_own_statistics",
        "ops/replicas.py",
        "return moments if self.size is True else merge([self._rows], 0)",
        "return moments",
        only(f"{REPLICAS}::test_groups_are_consecutive"),
    ),
    Mutant(
        "all_replicas_are_merged_twice",
        "ops/replicas.py",
        "return moments if self.size is True else merge([self._rows], 0)",
        "return merge([self._rows], 0)",
        only(f"{REPLICAS}::test_groups_are_consecutive"),
    ),
    # Virtual batches.
    Mutant(
        "the_virtual_axis_moves_all_channels",
        "ops/virtual.py",
        "a + (a > axis)",
        "a + 1",
        only(f"{OPS}/test_virtual.py"),
    ),
    Mutant(
        "the_rest_is_dropped",
        "ops/virtual.py",
        "        ops.expand_dims(rest, axis),\n",
        "",
        only(
            f"{OPS}/test_virtual.py::"
            "test_splitting_keeps_the_order_and_joining_undoes_it"
        ),
    ),
    Mutant(
        "virtual_batches_are_interleaved",
        "ops/virtual.py",
        "            return [ops.reshape(x, (*before, rows // size, size, *after))]",
        "            x = ops.reshape(x, (*before, size, rows // size, *after))\n"
        "            return [ops.swapaxes(x, axis, axis + 1)]",
        outputs("virtual_divides"),
    ),
    Mutant(
        "virtual_batches_are_looked_at_again",
        "ops/virtual.py",
        "leave_out = not all(part.all_finite for part in parts)",
        "leave_out = True",
        only(f"{OPS}/test_virtual.py"),
        reason="nothing is left out where all is known to be finite: not to look saves "
        "work",
    ),
    Mutant(
        "vectors_lack_the_axis_of_virtual_batches",
        "ops/virtual.py",
        "return ops.expand_dims(vector, batch.virtual_axis)",
        "return vector",
        outputs("virtual_axis_0"),
    ),
    # Masks.
    Mutant(
        "numpy_wins_over_batch_first",
        "ops/weights.py",
        "in (shape + (1,) * missing, (1,) * missing + shape)",
        "in ((1,) * missing + shape, shape + (1,) * missing)",
        only(f"{OPS}/test_weights.py::test_batch_first_wins_over_numpy"),
    ),
    Mutant(
        "masks_cover_channels_first",
        "ops/weights.py",
        "        yield shape\n    missing",
        "        yield shape\n    yield shape + (1,) * (ndim - len(shape))\n"
        "    missing",
        outputs("mask_channels_first"),
    ),
    Mutant(
        "masks_of_any_size_fit",
        "ops/weights.py",
        "return size == 1 or size == full_size",
        "return True",
        only(f"{OPS}/test_weights.py"),
    ),
    Mutant(
        "a_mask_has_a_gradient",
        "ops/weights.py",
        "return ops.stop_gradient(ops.reshape(ops.cast(mask, dtype), shape))",
        "return ops.reshape(ops.cast(mask, dtype), shape)",
        only(f"{OPS}/test_weights.py::test_no_gradient_flows_to_a_mask"),
    ),
    Mutant(
        "no_mask_varies_by_channel",
        "ops/weights.py",
        "return weights is not None and any(weights.shape[i] != 1 for i in batch.axes)",
        "return False",
        combination("absent_channel"),
    ),
    Mutant(
        "weight_0_counts",
        "ops/weights.py",
        "others, counted = batch.other_axes, batch.weights > 0",
        "others, counted = batch.other_axes, batch.weights >= 0",
        combination("absent_channel_at_inference"),
    ),
    Mutant(
        "a_batch_of_padding_alone_leaves_all_out",
        "ops/weights.py",
        "absent = ops.logical_and(ops.logical_not(counted), any_counts)",
        "absent = ops.logical_not(counted)",
        combination("all_absent"),
    ),
]

LAYER = [
    Mutant(
        "the_mask_is_ignored",
        "batch_normalization.py",
        "None if mask is None else mask_to_weights(mask, x, dtype, axes=axes)",
        "None",
        outputs("mask"),
    ),
    Mutant(
        "trainable_is_ignored",
        "batch_normalization.py",
        'if not self.trainable or "statistics" in self._frozen:',
        'if "statistics" in self._frozen:',
        behaviour("test_a_frozen_layer_is_in_inference_mode"),
    ),
    Mutant(
        "frozen_is_ignored",
        "batch_normalization.py",
        'if not self.trainable or "statistics" in self._frozen:',
        "if not self.trainable:",
        only(f"{FREEZING}::test_frozen_statistics_normalize_in_training"),
    ),
    Mutant(
        "an_empty_batch_takes_part",
        "batch_normalization.py",
        "if context is None and 0 in tuple(batch.x.shape):",
        "if False:",
        behaviour("test_a_batch_without_elements_changes_nothing"),
        reason="no channel of an empty batch is usable, and kernels aren't called for "
        "one: it saves work",
    ),
    Mutant(
        "a_traced_training_is_true",
        "batch_normalization.py",
        'return ops.cast(training, "bool") if is_traced else True',
        "return True",
        only(f"{DERIVATIVES}::test_training_may_be_a_traced_tensor"),
    ),
    Mutant(
        "trains_is_ignored",
        "batch_normalization.py",
        "usable = both(exist(moments, averages.narrow_to), trains)",
        "usable = exist(moments, averages.narrow_to)",
        only(f"{DERIVATIVES}::test_training_may_be_a_traced_tensor"),
    ),
    Mutant(
        "what_is_not_finite_is_usable",
        "ops/statistics.py",
        "usable = both(usable, ops.isfinite(moments.variance))",
        "pass",
        behaviour("test_one_bad_element_spoils_no_statistics"),
    ),
    Mutant(
        "nothing_is_usable",
        "ops/statistics.py",
        "usable = moments.size > 0\n",
        "usable = moments.size >= 0\n",
        behaviour("test_a_batch_without_elements_changes_nothing"),
    ),
    Mutant(
        "what_is_known_is_looked_at",
        "ops/statistics.py",
        "    elif not moments.all_finite:\n",
        "    else:\n",
        only(
            f"{STATISTICS}::"
            "test_statistics_exist_where_something_counts_and_all_is_finite",
        ),
    ),
    Mutant(
        "inverse_count_is_not_zeroed",
        "ops/statistics.py",
        "inverse_count = ops.cast(usable, mean.dtype) / moments.count",
        "inverse_count = 1.0 / moments.count",
        combination("inf"),
    ),
    Mutant(
        "inverse_count_is_not_zeroed_with_a_mask",
        "ops/statistics.py",
        "count = select(usable, moments.count, ops.full_like(mean, math.inf))",
        "count = moments.count",
        only(
            f"{STATISTICS}::test_other_statistics_take_the_place_of_what_is_not_usable",
        ),
    ),
    Mutant(
        "the_residual_is_not_zeroed",
        "ops/statistics.py",
        "residual = select(usable, residual, ops.zeros_like(residual))",
        "pass",
        combination("inf_generic"),
    ),
    Mutant(
        "an_unusable_channel_keeps_the_batchs_shift",
        "ops/statistics.py",
        "select(usable, shift, mean),",
        "shift,",
        combination("inf"),
    ),
    Mutant(
        "an_unusable_channel_keeps_the_batchs_variance",
        "ops/statistics.py",
        "select(usable, variance, other_variance),",
        "variance,",
        combination("inf"),
    ),
    Mutant(
        "statistics_have_a_gradient",
        "batch_normalization.py",
        "            everyone = without_gradient(everyone)\n",
        "",
        survivors("test_no_gradient_flows_through_the_statistics"),
    ),
    Mutant(
        "the_moving_mean_has_a_gradient",
        "ops/statistics.py",
        "residual=_constant(moments.residual)",
        "residual=moments.residual",
        survivors("test_no_gradient_flows_through_the_statistics"),
    ),
    Mutant(
        "the_moving_variance_has_a_gradient",
        "ops/statistics.py",
        "variance=_constant(moments.variance)",
        "variance=moments.variance",
        survivors("test_no_gradient_flows_through_the_statistics"),
    ),
    Mutant(
        "gradients_of_constants_are_stopped",
        "ops/statistics.py",
        "    if moments.all_finite:\n",
        "    if False:\n",
        survivors("test_no_gradient_flows_through_the_statistics"),
        reason="what kernels have found has no gradient: not to stop it saves work",
    ),
    Mutant(
        "one_element_has_a_variance",
        "averages.py",
        "both(usable, moments.size > 1)",
        "both(usable, moments.size > 0)",
        behaviour("test_one_element_moves_the_mean_and_not_the_variance"),
    ),
    Mutant(
        "an_unbiased_variance_always_exists",
        "averages.py",
        "            has_variance = both(has_variance, exists)\n",
        "",
        survivors("test_weights_below_one_in_all_have_no_unbiased_variance"),
    ),
    Mutant(
        "unbiased_is_ignored",
        "averages.py",
        "        if layer.unbiased_moving_variance:\n",
        "        if False:\n",
        outputs("unbiased"),
    ),
    Mutant(
        "updates_are_counted_twice",
        "averages.py",
        "new = old + 1.0",
        "new = old + 2.0",
        only(f"{AVERAGES}::test_the_cumulative_average_weighs_all_batches_alike"),
    ),
    Mutant(
        "updates_are_not_stored",
        "averages.py",
        "        self._write(variable, select(where, new, old))\n",
        "",
        only(f"{AVERAGES}::test_the_cumulative_average_weighs_all_batches_alike"),
    ),
    Mutant(
        "a_variance_that_is_missing_is_counted",
        "averages.py",
        'self._count("scale_updates", has_variance)',
        'self._count("scale_updates", usable)',
        combination("one_row_is_counted_once"),
    ),
    Mutant(
        "the_moving_mean_is_not_written",
        "averages.py",
        '            yield Average(layer.moving_mean, "mean", layer.momentum)\n'
        "            yield Average(layer.moving_variance,",
        "            yield Average(layer.moving_variance,",
        outputs("dense"),
    ),
    Mutant(
        "the_moving_variance_is_not_written",
        "averages.py",
        '            yield Average(layer.moving_variance, "variance", '
        "layer.momentum)\n",
        "",
        outputs("dense"),
    ),
    Mutant(
        "the_debiased_scale_is_not_written",
        "averages.py",
        "            yield Average(history.debiased_scale, scale, "
        "layer.momentum, True)\n",
        "",
        outputs("debiased"),
    ),
    Mutant(
        "the_debiased_mean_is_not_debiased",
        "averages.py",
        'Average(history.debiased_mean, "mean", layer.momentum, True)',
        'Average(history.debiased_mean, "mean", layer.momentum)',
        outputs("debiased"),
    ),
    Mutant(
        "renorms_debiased_deviation_is_not_written",
        "averages.py",
        '            yield Average(stddev, "batch_stddev", '
        "layer.renorm_momentum, True)\n",
        "",
        outputs("debiased"),
    ),
    Mutant(
        "renorms_moving_stddev_is_not_written",
        "averages.py",
        '            yield Average(layer.moving_stddev, "stddev", '
        "layer.momentum, start=start)\n",
        "",
        outputs("renorm"),
    ),
    Mutant(
        "renorms_moving_mean_is_not_written",
        "averages.py",
        '            yield Average(layer.moving_mean, "mean", layer.momentum)\n'
        "            yield Average(layer.moving_stddev,",
        "            yield Average(layer.moving_stddev,",
        outputs("renorm"),
    ),
    Mutant(
        "an_imported_variance_decides_nothing",
        "averages.py",
        "layer.momentum, start=start)",
        "layer.momentum)",
        behaviour("test_imported_variances_survive_renorms_first_step"),
    ),
    Mutant(
        "renorms_moving_variance_is_not_written",
        "averages.py",
        "            self._write(layer.moving_variance, select(has_variance, "
        "new, old))\n",
        "",
        outputs("renorm"),
    ),
    Mutant(
        "renorm_compares_with_the_unbiased_deviation",
        "averages.py",
        '"batch_stddev": ops.sqrt(moments.variance + layer.epsilon)',
        '"batch_stddev": ops.sqrt(variance + layer.epsilon)',
        outputs("unbiased_weights"),
    ),
    Mutant(
        "renorms_momentum_is_the_other",
        "averages.py",
        'yield Average(layer.renorm_mean, "mean", layer.renorm_momentum)',
        'yield Average(layer.renorm_mean, "mean", layer.momentum)',
        outputs("renorm_clipped"),
    ),
    Mutant(
        "renorms_deviation_has_the_other_momentum",
        "averages.py",
        'Average(layer.renorm_stddev, "batch_stddev", layer.renorm_momentum)',
        'Average(layer.renorm_stddev, "batch_stddev", layer.momentum)',
        outputs("renorm_clipped"),
    ),
    Mutant(
        "a_deviations_variance_keeps_epsilon",
        "averages.py",
        "ops.square(stddev) - epsilon",
        "ops.square(stddev)",
        outputs("renorm"),
    ),
    Mutant(
        "a_momentum_of_1_is_divided_out",
        "averages.py",
        "if not layer.debias_moving_statistics or layer.momentum == 1.0:",
        "if not layer.debias_moving_statistics:",
        survivors("test_a_momentum_of_1_keeps_the_initial_statistics_at_inference"),
    ),
    Mutant(
        "debiased_before_any_batch",
        "averages.py",
        "self.read(history.mean_updates) > 0",
        "self.read(history.mean_updates) >= 0",
        only(f"{AVERAGES}::test_initial_values_are_divided_out"),
    ),
    Mutant(
        "debiased_is_ignored_at_inference",
        "averages.py",
        "self.read(history.debiased_mean),",
        "mean,",
        only(f"{AVERAGES}::test_initial_values_are_divided_out"),
    ),
    Mutant(
        "a_debiased_deviation_is_taken_for_a_variance",
        "averages.py",
        "            scale = _variance_of(scale, layer.epsilon)\n",
        "            scale = scale * 1.0\n",
        only(f"{AVERAGES}::test_initial_values_are_divided_out"),
    ),
    Mutant(
        "renorm_uses_what_it_does_not_know",
        "averages.py",
        "            usable = both(usable, has_history)\n",
        "            pass\n",
        only(
            f"{AVERAGES}::"
            "test_renorm_starts_as_batch_normalization_and_not_as_the_identity",
        ),
    ),
    Mutant(
        "an_unusable_channel_has_an_r",
        "averages.py",
        "select(usable, r, ops.ones_like(r)),",
        "r,",
        combination("inf_renorm"),
    ),
    Mutant(
        "an_unusable_channel_has_a_d",
        "averages.py",
        "select(usable, d, ops.zeros_like(d)),",
        "d,",
        combination("inf_renorm"),
    ),
    Mutant(
        "d_is_not_scaled_by_gamma",
        "batch_normalization.py",
        "gamma, beta = gamma * r, beta + gamma * d",
        "gamma, beta = gamma * r, beta + d",
        outputs("renorm"),
    ),
    Mutant(
        "beta_is_lost_under_renorm",
        "batch_normalization.py",
        "gamma, beta = gamma * r, beta + gamma * d",
        "gamma, beta = gamma * r, gamma * d",
        outputs("renorm"),
    ),
    Mutant(
        "a_channel_of_padding_is_scaled",
        "batch_normalization.py",
        "            gamma = leave_out_absent(gamma, counted, batch)\n",
        "            pass\n",
        combination("absent_channel"),
    ),
    Mutant(
        "a_channel_of_padding_is_scaled_at_inference",
        "batch_normalization.py",
        "            gamma = leave_out_absent(gamma, are_counted(batch), batch)\n",
        "            pass\n",
        combination("absent_channel_at_inference"),
    ),
    Mutant(
        "kept_statistics_move",
        "batch_normalization.py",
        "if not (backends.active().is_recomputing() or are_kept()):",
        "if not backends.active().is_recomputing():",
        only(
            f"{AVERAGES}::test_passes_that_keep_the_statistics_differ_in_nothing_else",
        ),
    ),
    Mutant(
        "recomputing_moves_the_statistics",
        "batch_normalization.py",
        "if not (backends.active().is_recomputing() or are_kept()):",
        "if not are_kept():",
        only(f"{BACKEND}/test_torch.py::test_torchs_own_checkpoint_updates_once"),
    ),
    Mutant(
        "a_traced_false_is_a_step_of_schedules",
        "averages.py",
        'history.steps.assign_add(ops.cast(trains, "int32"))',
        "history.steps.assign_add(1)",
        survivors("test_a_traced_false_is_no_step_of_schedules"),
    ),
    Mutant(
        "steps_are_not_counted",
        "averages.py",
        'history.steps.assign_add(ops.cast(trains, "int32"))',
        "pass",
        only("tests/test_schedules.py::test_limits_relax_with_the_layers_steps"),
    ),
    Mutant(
        "float32_is_narrowed_before",
        "batch_normalization.py",
        'x = inputs if is_narrow and dtype == "float32" else _cast(inputs, dtype)',
        "x = _cast(inputs, self.compute_dtype)",
        behaviour("test_values_that_float16_lacks_survive"),
    ),
    Mutant(
        "float64_inputs_are_narrowed",
        "batch_normalization.py",
        'if "float64" in (of_inputs, of_outputs, self.variable_dtype):',
        'if "float64" in (of_outputs, self.variable_dtype):',
        combination("float64_inputs"),
    ),
    Mutant(
        "generic_rounds_its_gradients_to_16_bits",
        "batch_normalization.py",
        "            batch = batch._replace(x=_cast(batch.x, batch.dtype))\n",
        "            pass\n",
        gradients(
            "mixed_bfloat16_rows", "mixed_bfloat16_mean_100", implementation="generic"
        ),
    ),
    Mutant(
        "epsilon_may_be_0",
        "batch_normalization.py",
        'validate_number("epsilon", epsilon, 0.0, above=True)',
        'validate_number("epsilon", epsilon, 0.0)',
        only(f"{ARGUMENTS_TEST}::test_bad_arguments_are_value_errors_with_the_value"),
    ),
    Mutant(
        "freezing_thaws_the_other_half",
        "batch_normalization.py",
        "if on or k in self._frozen)",
        "if on)",
        survivors("test_freezing_one_half_leaves_the_other_frozen"),
    ),
    Mutant(
        "affine_thaws_with_trainable",
        "batch_normalization.py",
        'weight.trainable = self.trainable and "affine" not in self._frozen',
        "weight.trainable = self.trainable",
        only(FREEZING),
    ),
    Mutant(
        "reset_forgets_the_history",
        "averages.py",
        "            layer.history.reset()\n",
        "            pass\n",
        only(f"{AVERAGES}::test_the_cumulative_average_weighs_all_batches_alike"),
    ),
    Mutant(
        "reset_forgets_renorm",
        "averages.py",
        "            self.start_renorm(ops.sqrt(layer.moving_variance))\n",
        "            pass\n",
        survivors("test_a_reset_is_one_of_renorms_statistics_too"),
    ),
    Mutant(
        "the_config_lacks_virtual_batches",
        "batch_normalization.py",
        '            "virtual_batch_size": self.virtual_batch_size,\n',
        "",
        survivors("test_each_argument_survives_its_config"),
    ),
    Mutant(
        "the_config_lacks_debiasing",
        "batch_normalization.py",
        '            "debias_moving_statistics": self.debias_moving_statistics,\n',
        "",
        survivors("test_each_argument_survives_its_config"),
    ),
    Mutant(
        "the_config_lacks_axis_name",
        "batch_normalization.py",
        '            "axis_name": self.axis_name,\n',
        "",
        survivors("test_each_argument_survives_its_config"),
    ),
    Mutant(
        "the_config_lacks_synchronized",
        "batch_normalization.py",
        '            "synchronized": self.synchronized,\n',
        "",
        behaviour("test_config_and_weights_are_keras"),
    ),
    Mutant(
        "configs_thaw",
        "batch_normalization.py",
        '        layer.freeze("statistics" in frozen, "affine" in frozen)\n',
        "",
        only(f"{FREEZING}::test_clones_and_configs_are_frozen_alike"),
    ),
    Mutant(
        "loading_leaves_the_history",
        "batch_normalization.py",
        "            self.history.continue_from(self)\n",
        "            pass\n",
        only(
            f"{FILES}::"
            "test_what_averages_know_of_their_past_keeps_files_as_keras_has_them"
        ),
    ),
    Mutant(
        "an_unknown_past_is_none",
        "averages.py",
        "            self.take(layer, math.inf)\n",
        "            self.take(layer, 0)\n",
        only(
            f"{FILES}::"
            "test_what_averages_know_of_their_past_keeps_files_as_keras_has_them",
        ),
    ),
    Mutant(
        "loaded_renorm_starts_without_epsilon",
        "batch_normalization.py",
        "stddev = ops.sqrt(self.moving_variance + self.epsilon)",
        "stddev = ops.sqrt(self.moving_variance)",
        only(f"{FILES}::test_plain_weights_load_into_renorm"),
    ),
    Mutant(
        "renorms_mean_starts_at_0",
        "averages.py",
        "layer.renorm_mean.assign(ops.copy(layer.moving_mean))",
        "layer.renorm_mean.assign(ops.zeros_like(layer.moving_mean))",
        only(f"{FILES}::test_plain_weights_load_into_renorm"),
    ),
    Mutant(
        "averages_forget_trains",
        "batch_normalization.py",
        "usable = both(exist(everyone, averages.narrow_to), trains)",
        "usable = exist(everyone, averages.narrow_to)",
        combination("traced_false_virtual"),
    ),
    Mutant(
        "the_last_virtual_batch_decides_what_is_usable",
        "batch_normalization.py",
        "            usable = both(exist(everyone, averages.narrow_to), trains)\n",
        "",
        combination("inf_in_the_last_virtual_batch"),
    ),
    Mutant(
        "float64_is_stored_as_inf",
        "ops/statistics.py",
        "usable = both(usable, ops.isfinite(ops.cast(vector, narrow_to)))",
        "usable = both(usable, ops.isfinite(vector))",
        only(f"{COMBINATIONS}[a variance that only float64 holds]"),
    ),
    Mutant(
        "a_float64_mean_is_stored_as_inf",
        "ops/statistics.py",
        "for vector in (moments.variance, moments.shift + moments.residual):",
        "for vector in (moments.variance,):",
        only(f"{COMBINATIONS}[a mean that only float64 holds]"),
    ),
    Mutant(
        "a_merged_variance_is_not_judged",
        "batch_normalization.py",
        "usable = both(exist(everyone, averages.narrow_to), trains)",
        "usable = both(everyone.size > 0, trains)",
        only(f"{COMBINATIONS}[a joined variance that overflows]"),
    ),
    Mutant(
        "a_renorm_momentum_of_one_is_divided_by_0",
        "averages.py",
        "if layer.debias_moving_statistics and layer.renorm_momentum != 1.0:",
        "if layer.debias_moving_statistics:",
        only(f"{AVERAGES}::test_a_momentum_of_one_never_sees_a_batch"),
    ),
    Mutant(
        "a_recomputed_pass_forgets_its_group",
        "backends/torch.py",
        "    elif is_recomputing() and _repeated:",
        "    elif False:",
        only("tests/test_synchronized.py::test_replicas_are_one_batch[4]"),
    ),
    Mutant(
        "a_virtual_batch_that_is_not_finite_is_merged",
        "ops/virtual.py",
        "leave_out = not all(part.all_finite for part in parts)",
        "leave_out = False",
        only(
            f"{OPS}/test_virtual.py::"
            "test_one_inf_takes_its_virtual_batch_and_channel_only",
        ),
    ),
    Mutant(
        "rmin_may_be_above_rmax",
        "arguments.py",
        "        if rmin > rmax:\n",
        "        if False:\n",
        only(f"{ARGUMENTS_TEST}::test_bad_arguments_are_value_errors_with_the_value"),
    ),
    Mutant(
        "schedules_are_not_looked_at",
        "arguments.py",
        "for step in [0, *(10**i for i in range(8))] if scheduled else [0]:",
        "for step in [0]:",
        only(f"{ARGUMENTS_TEST}::test_bad_arguments_are_value_errors_with_the_value"),
    ),
    Mutant(
        "a_file_without_history_is_refused",
        "averages.py",
        "        if len(store.keys()):\n            super()",
        "        if True:\n            super()",
        only(
            f"{FILES}::"
            "test_what_averages_know_of_their_past_keeps_files_as_keras_has_them",
        ),
    ),
    Mutant(
        "renorms_statistics_share_a_buffer",
        "averages.py",
        "layer.renorm_stddev.assign(ops.copy(stddev))",
        "layer.renorm_stddev.assign(stddev)",
        survivors("test_a_layer_that_was_reset_is_fitted"),
        backend="jax",
    ),
    Mutant(
        "an_unknown_past_shares_a_buffer",
        "averages.py",
        "self.debiased_mean.assign(ops.copy(layer.moving_mean))",
        "self.debiased_mean.assign(layer.moving_mean)",
        survivors("test_a_layer_that_was_loaded_is_fitted"),
        backend="jax",
    ),
    Mutant(
        "replicas_merge_nothing",
        "ops/replicas.py",
        "        return merge([gather(moments, self.replicas)], 0)\n",
        "        return moments\n",
        only("tests/test_synchronized.py::test_replicas_are_one_batch[2]"),
    ),
    Mutant(
        "gradients_stay_on_their_replica",
        "batch_normalization.py",
        "sum_gradients=reduction.sum_gradients,",
        "sum_gradients=None,",
        only("tests/test_synchronized.py::test_replicas_are_one_batch[2]"),
    ),
]

ARGUMENTS = [
    Mutant(
        "a_bool_is_an_axis",
        "arguments.py",
        "if isinstance(value, bool) or not isinstance(value, numbers.Integral):",
        "if not isinstance(value, numbers.Integral):",
        only(f"{ARGUMENTS_TEST}::test_bad_arguments_are_value_errors_with_the_value"),
    ),
    Mutant(
        "axes_may_repeat",
        "arguments.py",
        "if values and len(set(values)) == len(values):",
        "if values:",
        only(f"{ARGUMENTS_TEST}::test_bad_arguments_are_value_errors_with_the_value"),
    ),
    Mutant(
        "no_axis_is_an_axis",
        "arguments.py",
        "if values and len(set(values)) == len(values):",
        "if len(set(values)) == len(values):",
        only(f"{ARGUMENTS_TEST}::test_bad_arguments_are_value_errors_with_the_value"),
    ),
    Mutant(
        "one_axis_is_a_tuple",
        "arguments.py",
        "return axes if len(axes) > 1 else axes[0]",
        "return axes",
        only(f"{ARGUMENTS_TEST}::test_arguments_are_kept_as_plain_numbers"),
    ),
    Mutant(
        "virtual_batches_may_be_of_nothing",
        "arguments.py",
        "(whole and size >= 1)",
        "(whole and size >= 0)",
        only(f"{ARGUMENTS_TEST}::test_bad_arguments_are_value_errors_with_the_value"),
    ),
    Mutant(
        "a_bool_is_the_size_of_virtual_batches",
        "arguments.py",
        "whole = isinstance(size, numbers.Integral) and not isinstance(size, bool)",
        "whole = isinstance(size, numbers.Integral)",
        only(f"{ARGUMENTS_TEST}::test_bad_arguments_are_value_errors_with_the_value"),
    ),
    Mutant(
        "a_group_may_be_of_one_replica",
        "arguments.py",
        "isinstance(synchronized, numbers.Integral) and synchronized > 1",
        "isinstance(synchronized, numbers.Integral) and synchronized > 0",
        behaviour("test_what_names_no_replicas_is_refused"),
    ),
    Mutant(
        "a_name_may_be_empty",
        "arguments.py",
        "(isinstance(name, str) and name)",
        "isinstance(name, str)",
        behaviour("test_what_names_no_replicas_is_refused"),
    ),
    Mutant(
        "a_bool_is_a_number",
        "arguments.py",
        "real = isinstance(value, numbers.Real) and not isinstance(value, bool)",
        "real = isinstance(value, numbers.Real)",
        only(f"{ARGUMENTS_TEST}::test_bad_arguments_are_value_errors_with_the_value"),
    ),
    Mutant(
        "numbers_have_no_lower_bound",
        "arguments.py",
        "else low <= value <= high)",
        "else value <= high)",
        only(f"{ARGUMENTS_TEST}::test_bad_arguments_are_value_errors_with_the_value"),
    ),
    Mutant(
        "epsilon_may_be_infinite",
        "arguments.py",
        "(low < value < high if above",
        "(low < value <= high if above",
        only(f"{ARGUMENTS_TEST}::test_bad_arguments_are_value_errors_with_the_value"),
    ),
    Mutant(
        "numbers_stay_as_they_are",
        "arguments.py",
        "    return float(value)\n",
        "    return value\n",
        only(f"{ARGUMENTS_TEST}::test_arguments_are_kept_as_plain_numbers"),
    ),
    Mutant(
        "limits_may_have_any_name",
        "arguments.py",
        "if not isinstance(clipping, dict) or set(clipping) - set(keys):",
        "if not isinstance(clipping, dict):",
        only(f"{ARGUMENTS_TEST}::test_bad_arguments_are_value_errors_with_the_value"),
    ),
    Mutant(
        "ds_limit_has_no_message_of_its_own",
        "arguments.py",
        'if key == "dmax" and isinstance(value, numbers.Real) and value < 0:',
        "if False:",
        only(f"{ARGUMENTS_TEST}::test_bad_arguments_are_value_errors_with_the_value"),
    ),
    Mutant(
        "the_rank_is_an_axis",
        "arguments.py",
        "if not -ndim <= a < ndim:",
        "if not -ndim <= a <= ndim:",
        only(f"{ARGUMENTS_TEST}::test_an_axis_out_of_range_is_named"),
    ),
    Mutant(
        "an_axis_may_be_named_twice",
        "arguments.py",
        "if len(positions) < len(axes):",
        "if False:",
        only(
            f"{ARGUMENTS_TEST}::test_an_axis_named_twice_is_refused_once_the_rank_is_known"
        ),
    ),
]

GENERIC = [
    Mutant(
        "generic_sums_without_a_shift",
        "backends/generic.py",
        "shift = ops.stop_gradient(pick_element(x, others))",
        "shift = ops.zeros_like(pick_element(x, others))",
        only(f"{CONTRACT}::test_mean_and_variance_keep_their_digits"),
    ),
    Mutant(
        "generic_differentiates_its_shift",
        "backends/generic.py",
        "shift = ops.stop_gradient(pick_element(x, others))",
        "shift = pick_element(x, others)",
        gradients("dense", implementation="generic"),
        reason="the shift cancels out of the result: its gradient is 0, and to stop it "
        "saves work only",
    ),
    Mutant(
        "generic_divides_by_0",
        "backends/generic.py",
        "total(values) / ops.where(count > 0, count, ops.ones_like(count))",
        "total(values) / count",
        behaviour("test_a_batch_without_elements_changes_nothing")
        + only(f"{CONTRACT}::test_no_element_and_one_element"),
    ),
    Mutant(
        "generic_reads_padding",
        "backends/generic.py",
        "shifted = ops.where(counted, x, shift) - shift",
        "shifted = x - shift",
        behaviour("test_nan_in_padding_reaches_nothing"),
    ),
    Mutant(
        "generic_ignores_weights",
        "backends/generic.py",
        "values = weights * values",
        "values = 1.0 * values",
        outputs("weights"),
    ),
    Mutant(
        "generic_takes_weights_below_0",
        "backends/generic.py",
        "weights = ops.where(counted, weights, ops.zeros_like(weights))",
        "weights = weights * 1.0",
        survivors("test_weights_that_are_negative_or_nan_are_0"),
    ),
    Mutant(
        "generic_takes_weights_for_sizes",
        "backends/generic.py",
        "ops.cast(ops.broadcast_to(counted, shape), x.dtype)",
        "ops.broadcast_to(weights, shape)",
        behaviour("test_many_small_weights_are_not_one_element"),
    ),
    Mutant(
        "generic_counts_elements",
        "backends/generic.py",
        "count = total(ops.broadcast_to(weights, shape))",
        "count = total(ops.cast(ops.broadcast_to(counted, shape), x.dtype))",
        outputs("weights"),
    ),
    Mutant(
        "generic_squares_what_overflows",
        "backends/generic.py",
        "ops.where(ops.abs(centered) < limit, centered, nan)",
        "centered",
        combination("inf_generic"),
    ),
    Mutant(
        "generic_takes_the_difference_of_squares",
        "backends/generic.py",
        "    centered = shifted - residual\n",
        "    centered = shifted\n",
        only(f"{CONTRACT}::test_a_far_first_element_costs_no_digits"),
    ),
    Mutant(
        "generic_rounds_the_mean",
        "backends/generic.py",
        "        centered = centered - per_element(statistics.residual, batch)\n",
        "        centered = x - per_element(statistics.shift + "
        "statistics.residual, batch)\n",
        accuracy("rows-plain-generic"),
    ),
    Mutant(
        "generic_normalizes_by_x_a_b",
        "backends/generic.py",
        "    y = centered * per_element(scale, batch) + "
        "per_element(affine.beta, batch)\n",
        "    offset = affine.beta - (statistics.shift + statistics.residual) * "
        "scale\n"
        "    y = x * per_element(scale, batch) + per_element(offset, batch)\n",
        accuracy("rows-plain-generic"),
    ),
    Mutant(
        "generic_outputs_padding",
        "backends/generic.py",
        "valid = ops.logical_or(batch.weights > 0, ops.isfinite(x))",
        "valid = batch.weights >= 0",
        only(
            f"{CONTRACT}::test_only_what_has_no_weight_and_is_not_finite_gives_beta",
        ),
    ),
    Mutant(
        "generic_takes_all_padding_for_the_mean",
        "backends/generic.py",
        "valid = ops.logical_or(batch.weights > 0, ops.isfinite(x))",
        "valid = batch.weights > 0",
        only(
            f"{CONTRACT}::test_only_what_has_no_weight_and_is_not_finite_gives_beta",
        ),
    ),
    Mutant(
        "generic_adds_epsilon_to_the_deviation",
        "backends/generic.py",
        "ops.sqrt(statistics.variance + epsilon)",
        "ops.sqrt(statistics.variance) + epsilon",
        only(f"{CONTRACT}::test_by_hand"),
    ),
    Mutant(
        "generic_sums_in_16_bits",
        "backends/generic.py",
        'return ops.cast(x, "float64" if dtype == "float64" else "float32")',
        "return x",
        outputs("mixed_bfloat16_mask"),
    ),
    Mutant(
        "statistics_are_of_other_axes",
        "backends/contract.py",
        "return tuple(i for i in range(len(x.shape)) if i not in axes)",
        "return tuple(i for i in range(len(x.shape) - 1))",
        only(f"{BACKEND}/test_generic.py"),
    ),
    Mutant(
        "statistics_of_the_batch_are_constants",
        "backends/contract.py",
        "return isinstance(self.inverse_count, float) and self.inverse_count == 0.0",
        "return isinstance(self.inverse_count, float)",
        only(
            f"{STATISTICS}::test_other_statistics_take_the_place_of_what_is_not_usable",
        ),
    ),
    Mutant(
        "the_formula_takes_weights_below_0",
        "backends/generic.py",
        "weight = ops.where(counted, weights, ops.zeros_like(weights))",
        "weight = ops.where(ops.isnan(weights), ops.zeros_like(weights), weights)",
        survivors("test_weights_that_are_negative_or_nan_are_0"),
    ),
    Mutant(
        "the_formula_takes_weights_that_are_nan",
        "backends/generic.py",
        "weight = ops.where(counted, weights, ops.zeros_like(weights))",
        "weight = ops.where(weights < 0, ops.zeros_like(weights), weights)",
        survivors("test_weights_that_are_negative_or_nan_are_0"),
    ),
    Mutant(
        "the_formula_multiplies_weight_0_by_infinity",
        "backends/generic.py",
        "        if weight is not None:\n"
        "            deviations = ops.where(counted, deviations, zeros)\n"
        "        second = through(total(weighted(ops.square(deviations))))\n",
        "        squares = ops.square(deviations)\n"
        "        second = through(total(squares if weight is None else weight "
        "* squares))\n",
        survivors("test_what_padding_overflows_to_has_no_second_derivative"),
    ),
    Mutant(
        "the_formula_multiplies_weight_0_by_a_large_element",
        "backends/generic.py",
        "dx = dx - (weight * first + weighted(x_hat) * second)",
        "dx = dx - weight * (first + x_hat * second)",
        only(f"{COMBINATIONS}[a square that overflows where the weight is 0]"),
    ),
    Mutant(
        "the_formula_gives_padding_a_gradient",
        "backends/generic.py",
        "        dx = ops.where(valid, dy, zeros)\n",
        "",
        combination("poison"),
    ),
    Mutant(
        "the_formula_takes_padding_for_gammas_gradient",
        "backends/generic.py",
        "        x_hat = ops.where(valid, x_hat, zeros)\n",
        "        pass\n",
        combination("poison"),
    ),
    Mutant(
        "the_formula_is_once_differentiable_in_the_mean",
        "backends/generic.py",
        "residual = residual + (first - ops.stop_gradient(first))",
        "residual = residual + 0.0 * first",
        only(
            f"{BACKEND}/test_generic.py::"
            "test_the_formula_is_the_oracles_to_the_second_order"
        ),
    ),
    Mutant(
        "the_formula_is_once_differentiable_in_the_variance",
        "backends/generic.py",
        "variance = variance + (second - ops.stop_gradient(second))",
        "variance = variance + 0.0 * ops.stop_gradient(second)",
        only(
            f"{BACKEND}/test_generic.py::"
            "test_the_formula_is_the_oracles_to_the_second_order"
        ),
    ),
    Mutant(
        "the_formula_adds_the_gradient_of_the_variance",
        "backends/generic.py",
        "dx = dx - (first + x_hat * second)",
        "dx = dx - (first - x_hat * second)",
        only(
            f"{BACKEND}/test_generic.py::"
            "test_the_formula_is_the_oracles_to_the_second_order"
        ),
    ),
    Mutant(
        "the_formula_adds_the_gradient_of_a_masked_variance",
        "backends/generic.py",
        "dx = dx - (weight * first + weighted(x_hat) * second)",
        "dx = dx - (weight * first - weighted(x_hat) * second)",
        only(
            f"{BACKEND}/test_generic.py::"
            "test_the_formula_is_the_oracles_to_the_second_order"
        ),
    ),
    Mutant(
        "the_formula_forgets_the_gradient_of_the_mean",
        "backends/generic.py",
        "dx = dx - (weight * first + weighted(x_hat) * second)",
        "dx = dx - weighted(x_hat) * second",
        only(
            f"{BACKEND}/test_generic.py::"
            "test_the_formula_is_the_oracles_to_the_second_order"
        ),
    ),
    Mutant(
        "the_formula_forgets_the_residual",
        "backends/generic.py",
        "x_hat = (centered - per_element(residual, batch)) * "
        "per_element(inverse, batch)",
        "x_hat = centered * per_element(inverse, batch)",
        gradients("mask", "virtual_divides"),
    ),
    Mutant(
        "the_formula_forgets_gamma",
        "backends/generic.py",
        "dx = dx * per_element(affine.gamma * inverse, batch)",
        "dx = dx * per_element(inverse, batch)",
        only(
            f"{BACKEND}/test_generic.py::"
            "test_the_formula_is_the_oracles_to_the_second_order"
        ),
    ),
    Mutant(
        "the_formula_multiplies_0_by_infinity",
        "backends/generic.py",
        "        sums = ops.where(inverse_count > 0, sums, ops.zeros_like(sums))\n",
        "        pass\n",
        only(
            f"{BACKEND}/test_torch.py::"
            "test_an_unusable_channel_has_the_gradient_of_inference",
        ),
    ),
    Mutant(
        "the_formula_forgets_inverse_count",
        "backends/generic.py",
        "return inverse_count * sums",
        "return sums",
        only(
            f"{BACKEND}/test_generic.py::"
            "test_the_formula_is_the_oracles_to_the_second_order"
        ),
    ),
    Mutant(
        "the_formula_ignores_the_other_replicas",
        "backends/generic.py",
        "        sums = sum_gradients(sums)\n",
        "        pass\n",
        only("tests/test_synchronized.py::test_replicas_are_one_batch[2]"),
    ),
]

TORCH = [
    Mutant(
        "torch_does_not_look_again",
        "backends/torch.py",
        "if not lowest >= 0.0:",
        "if False:",
        accuracy("rows-plain-native"),
    ),
    Mutant(
        "torch_normalizes_by_x_a_b_at_inference",
        "backends/torch.py",
        "needs_shift = not _bounds(shift, variance + epsilon)[0] >= 0.0",
        "needs_shift = False",
        accuracy("rows-plain-native"),
    ),
    Mutant(
        "torch_rounds_the_mean",
        "backends/torch.py",
        "needs_shift = is_vector",
        "needs_shift = False",
        accuracy("rows-plain-native"),
    ),
    Mutant(
        "torch_ignores_the_rest",
        "backends/torch.py",
        "mean, shift = shift + residual if is_vector else shift, None",
        "mean, shift = shift, None",
        outputs("dense", "raw_table"),
        reason="where the mean is so large that the rest is one, the digits of a "
        "rounded sum are cut by epsilon",
    ),
    Mutant(
        "torch_calls_kernels_for_nothing",
        "backends/torch.py",
        "return batch.weights is None and batch.x.numel() > 0",
        "return batch.weights is None",
        only(
            f"{BACKEND}/test_torch.py::test_an_empty_batch_has_empty_and_zero_gradients"
        ),
    ),
    Mutant(
        "torch_keeps_statistics_that_move",
        "backends/torch.py",
        "shift=statistics.shift.clone(), variance=statistics.variance.clone()",
        "shift=statistics.shift, variance=statistics.variance",
        only(
            f"{BACKEND}/test_torch.py::"
            "test_moving_statistics_may_move_before_the_backward_pass"
        ),
    ),
    Mutant(
        "torch_adds_in_long_chains",
        "backends/torch.py",
        "_CHAIN, _WIDTH, _FEW = 512, 512, 64",
        "_CHAIN, _WIDTH, _FEW = 8192, 512, 64",
        only(f"{BACKEND}/test_torch.py::test_sums_of_wide_rows_keep_their_digits"),
    ),
    Mutant(
        "torch_forgets_the_tail_of_blocks",
        "backends/torch.py",
        "return mean, (within + (tail - mean).square().sum(0)) / n",
        "return mean, within / n",
        outputs("many_rows"),
    ),
    Mutant(
        "torch_forgets_the_variance_between_blocks",
        "backends/torch.py",
        "(variances + (means - mean).square())",
        "variances",
        outputs("many_rows"),
    ),
    Mutant(
        "torch_is_unbiased_in_16_bits",
        "backends/torch.py",
        "values = values if values.dtype == torch.float64 else values.float()",
        "pass",
        outputs("mixed_bfloat16_images_first", "mixed_bfloat16_rows"),
    ),
    Mutant(
        "torch_differentiates_fixed_statistics",
        "backends/torch.py",
        "            not statistics.are_constants,\n            epsilon,",
        "            True,\n            epsilon,",
        gradients_at_inference("dense"),
    ),
    Mutant(
        "torch_swaps_gamma_and_beta",
        "backends/torch.py",
        "dgamma.view(shape) if wanted[1]",
        "dbeta.view(shape) if wanted[1]",
        gradients("raw_table", "many_rows"),
    ),
    Mutant(
        "torch_knows_that_all_is_finite",
        "backends/torch.py",
        "all_finite = math.isfinite(variance.sum())",
        "all_finite = True",
        behaviour("test_one_bad_element_spoils_no_statistics"),
    ),
    Mutant(
        "torch_recomputes_as_if_first",
        "backends/torch.py",
        "return torch._C._current_graph_task_id() != -1",
        "return False",
        only(f"{BACKEND}/test_torch.py::test_recomputing_is_only_inside_backward"),
    ),
    Mutant(
        "torch_ignores_the_process_group",
        "backends/torch.py",
        "        group = parallel.process_group\n",
        "        group = None\n",
        only("tests/test_synchronized.py::test_replicas_are_one_batch[4]"),
    ),
    Mutant(
        "torch_reduces_nothing_backward",
        "backends/torch.py",
        "return _AllReduceSum.apply(upstream, ctx.group), None",
        "return upstream, None",
        only("tests/test_synchronized.py::test_replicas_are_one_batch[2]"),
    ),
    Mutant(
        "torch_knows_that_a_variance_is_finite",
        "backends/torch.py",
        "all_finite = highest < math.inf",
        "all_finite = True",
        only(f"{BACKEND}/test_torch.py::test_an_infinite_variance_about_a_small_mean"),
    ),
    Mutant(
        "torch_sums_squares_about_0",
        "backends/torch.py",
        "torch.linalg.vector_norm(values - mean[:, None], dim=2)",
        "torch.linalg.vector_norm(values, dim=2)",
        outputs("channels_first"),
    ),
    Mutant(
        "torch_repeats_sums_in_16_bits",
        "backends/torch.py",
        "        and batch.x.dtype == statistics.shift.dtype\n",
        "",
        only(
            f"{BACKEND}/test_torch.py::"
            "test_gradients_of_gamma_and_beta_arent_rounded_to_16_bits"
        ),
    ),
    Mutant(
        "torch_repeats_long_sums",
        "backends/torch.py",
        "min(_REPEATED, _CHAIN * statistics.variance.numel())",
        "_REPEATED",
        accuracy("many_rows-plain-native"),
    ),
    Mutant(
        "torch_repeats_sums_of_large_means",
        "backends/torch.py",
        "        and isinstance(statistics.residual, float)\n",
        "",
        accuracy("rows-plain-native"),
    ),
    Mutant(
        "torch_repeats_sums_at_inference",
        "backends/torch.py",
        "        and not statistics.are_constants\n",
        "",
        gradients_at_inference("dense"),
    ),
    Mutant(
        "torch_takes_the_first_virtual_batch_for_all",
        "backends/torch.py",
        "return value[i] if isinstance(value, torch.Tensor) else value",
        "return value[0] if isinstance(value, torch.Tensor) else value",
        only(f"{BACKEND}/test_torch.py::test_virtual_batches_of_every_size_and_layout"),
    ),
    Mutant(
        "torch_has_no_large_virtual_batches",
        "backends/torch.py",
        "x[0].numel() >= _SMALL",
        "False",
        only(f"{BACKEND}/test_torch.py::test_virtual_batches_of_every_size_and_layout"),
        reason="seen as more channels they have the same numbers, in more time",
    ),
    Mutant(
        "torch_restores_another_order",
        "backends/torch.py",
        "inverse = sorted(range(len(self.order)), key=self.order.__getitem__)",
        "inverse = self.order",
        only(f"{BACKEND}/test_torch.py::test_layouts_change_no_number"),
    ),
    Mutant(
        "torch_forgets_replicas_on_a_gpu",
        "backends/torch.py",
        "torch.stack(sums), _flat(inverse_count), sum_gradients",
        "torch.stack(sums), _flat(inverse_count), None",
        only(f"{BACKEND}/test_torch.py::test_a_gpus_two_kernels_are_the_formula"),
    ),
    Mutant(
        "torch_divides_twice_on_a_gpu",
        "backends/torch.py",
        "one = torch.ones(1, dtype=torch.int32, device=values.device)",
        "one = torch.full((1,), 2, dtype=torch.int32, device=values.device)",
        only(f"{BACKEND}/test_torch.py::test_a_gpus_two_kernels_are_the_formula"),
    ),
]

TOOLS = [
    Mutant(
        "subclasses_are_converted",
        "tools/conversion.py",
        "            if type(layer) in _CONVERTED:\n                copy",
        "            if isinstance(layer, _CONVERTED):\n                copy",
        only(f"{CONVERSION}::test_subclasses_are_kept"),
    ),
    # The activation of the layer.
    Mutant(
        "a_traced_inference_has_virtual_batches",
        "batch_normalization.py",
        "if batch.virtual_axis is not None and trains is not True:",
        "if False:",
        only(COMBINATIONS),
        backend="tensorflow",
    ),
    Mutant(
        "relu_with_a_threshold_is_relu",
        "ops/activations.py",
        "arguments = {k: v for k, v in arguments.items() if v}",
        "arguments = {k: v for k, v in arguments.items() if v and k != 'threshold'}",
        only(f"{OPS}/test_activations.py::test_others_are_not_taken_for_one"),
    ),
    Mutant(
        "an_activation_forgets_its_arguments",
        "ops/activations.py",
        "{**_DEFAULTS[name], **arguments}",
        "_DEFAULTS[name]",
        only(f"{OPS}/test_activations.py::test_the_same_activation_has_one_name"),
    ),
    Mutant(
        "an_activation_is_left_out",
        "backends/generic.py",
        "return y if activation is None else activation(y)",
        "return y",
        only(f"{ACTIVATION}it_meets_every_other_option"),
    ),
    Mutant(
        "an_activations_gradient_is_left_out",
        "backends/generic.py",
        "        dy = through_activation(dy, z)\n",
        "        pass\n",
        only(f"{ACTIVATION}it_meets_every_other_option"),
    ),
    Mutant(
        "an_activations_gradient_has_no_second_order",
        "backends/generic.py",
        "statistics = statistics._replace(residual=residual, variance=variance)",
        "pass",
        only(f"{DERIVATIVES}::test_second_order_is_that_of_the_oracle"),
    ),
    Mutant(
        "an_activations_second_gradient_is_of_a_kernel",
        "backends/torch.py",
        "_through_again if again else _through",
        "_through",
        only(f"{DERIVATIVES}::test_second_order_is_that_of_the_oracle"),
    ),
    Mutant(
        "torch_takes_the_sums_of_a_row_for_those_of_all",
        "backends/torch.py",
        "apart = rows > 1 and not statistics.are_constants",
        "apart = False",
        gradients("few_channels"),
    ),
    Mutant(
        "torch_does_not_repeat_gamma_for_each_row",
        "backends/torch.py",
        "shape, gamma = affine.gamma.shape, view.repeated(affine.gamma)",
        "shape, gamma = affine.gamma.shape, torch.ones_like(mean)",
        gradients("few_channels"),
    ),
    Mutant(
        "torch_keeps_what_an_activation_needs",
        "backends/torch.py",
        "    with saved_tensors_hooks(is_input, again):\n",
        "    if True:\n",
        only(f"{ACTIVATION}no_more_than_the_inputs_is_kept"),
    ),
    Mutant(
        "torch_takes_outputs_for_inputs_of_an_activation",
        "backends/torch.py",
        "return z if is_input else activation(z)",
        "return z",
        only(f"{ACTIVATION}each_activation_is_the_oracles"),
    ),
    Mutant(
        "jax_keeps_what_an_activation_needs",
        "backends/jax.py",
        "    @jax.checkpoint\n    def activated",
        "    def activated",
        only(f"{ACTIVATION}no_more_than_the_inputs_is_kept"),
        backend="jax",
    ),
    Mutant(
        "tensorflow_keeps_what_an_activation_needs",
        "backends/tensorflow.py",
        "if activation is not None and not activation.needs_inputs:",
        "if activation is not None:",
        only(f"{ACTIVATION}no_more_than_the_inputs_is_kept"),
        backend="tensorflow",
    ),
    Mutant(
        "activations_of_several_users_are_fused",
        "tools/conversion.py",
        "            if len(behind) == 1 and _can_be_taken(behind[0], layer):\n",
        "            if _can_be_taken(behind[0], layer):\n",
        only(f"{CONVERSION}::test_activations_are_fused_and_taken_apart_again"),
    ),
    Mutant(
        "activations_of_another_dtype_are_fused",
        "tools/conversion.py",
        "return is_known and other.compute_dtype == layer.compute_dtype",
        "return is_known",
        only(f"{CONVERSION}::test_activations_are_fused_and_taken_apart_again"),
    ),
    Mutant(
        "activations_behind_shared_layers_are_fused",
        "tools/conversion.py",
        "if type(layer) in _CONVERTED and counts[id(layer)] == 1:",
        "if type(layer) in _CONVERTED:",
        only(f"{CONVERSION}::test_activations_are_fused_and_taken_apart_again"),
    ),
    Mutant(
        "converted_arguments_stay",
        "tools/conversion.py",
        "{**layer.get_config(), **arguments, **more}",
        "{**arguments, **layer.get_config(), **more}",
        only(f"{CONVERSION}::test_there_and_back_keeps_all_but_the_arguments"),
    ),
    Mutant(
        "converted_layers_start_anew",
        "tools/conversion.py",
        "                    _copy_weights(old, new, converted)\n",
        "                    pass\n",
        only(f"{CONVERSION}::test_there_and_back_keeps_all_but_the_arguments"),
    ),
    Mutant(
        "converted_counts_start_anew",
        "tools/conversion.py",
        'for name in ("history", "activation"):',
        'for name in ("activation",):',
        only(f"{CONVERSION}::test_what_averages_know_and_what_is_frozen_is_kept"),
    ),
    Mutant(
        "shared_layers_are_converted_twice",
        "tools/conversion.py",
        "        if id(layer) not in self.pairs:\n",
        "        if True:\n",
        only(f"{CONVERSION}::test_what_is_shared_stays_shared"),
    ),
    Mutant(
        "converted_layers_train",
        "tools/conversion.py",
        "                if new.trainable != trains:\n",
        "                if False:\n",
        only(f"{CONVERSION}::test_what_trains_is_kept"),
    ),
    Mutant(
        "converting_shares_buffers",
        "tools/models.py",
        "{key: ops.copy(value) for key, value in store.items()}",
        "store",
        only(f"{CONVERSION}::test_training_one_leaves_the_other_as_it_was"),
        backend="jax",
    ),
    Mutant(
        "kerass_layers_are_frozen_by_half",
        "tools/freezing.py",
        "    if kerass:\n",
        "    if False:\n",
        only(f"{FREEZING}::test_keras_layers_are_frozen_as_a_whole"),
    ),
    Mutant(
        "the_halves_are_swapped",
        "tools/freezing.py",
        "layer.freeze(statistics, affine)",
        "layer.freeze(affine, statistics)",
        only(f"{FREEZING}::test_each_half_is_frozen_under_fit_and_thawed"),
    ),
    Mutant(
        "kerass_layers_stay_frozen",
        "tools/freezing.py",
        "            layer.trainable = True\n",
        "            pass\n",
        only(f"{FREEZING}::test_keras_layers_are_frozen_as_a_whole"),
    ),
    Mutant(
        "nothing_is_said_after_compile",
        "tools/freezing.py",
        'if getattr(model, "compiled", False):',
        "if False:",
        only(f"{FREEZING}::test_a_compiled_model_says_what_has_to_be_done"),
    ),
    Mutant(
        "dictionaries_are_not_searched",
        "tools/models.py",
        "            parts = list(item.values())\n",
        "            pass\n",
        only("tests/tools/test_models.py"),
        reason="Keras lists layers of dictionaries among a layer's own, too",
    ),
    Mutant(
        "attributes_are_not_searched",
        "tools/models.py",
        ", *vars(item).values()]",
        "]",
        only("tests/tools/test_models.py"),
    ),
    Mutant(
        "ramps_go_on",
        "schedules.py",
        "ops.clip(passed, 0.0, 1.0)",
        "passed",
        only("tests/test_schedules.py::test_the_papers_numbers_are_the_defaults"),
    ),
    Mutant(
        "ramps_start_at_once",
        "schedules.py",
        '(ops.cast(step, "float32") - self.start)',
        'ops.cast(step, "float32")',
        only("tests/test_schedules.py::test_the_papers_numbers_are_the_defaults"),
    ),
    Mutant(
        "ramps_forget_that_they_are_reciprocal",
        "schedules.py",
        '            "reciprocal": self.reciprocal,\n',
        "",
        only("tests/test_schedules.py::test_a_ramp_is_restored"),
    ),
    Mutant(
        "r_and_d_relax_alike",
        "schedules.py",
        "Ramp(0.0, dmax, start=start, end=dmax_end)",
        "Ramp(0.0, dmax, start=start, end=rmax_end)",
        only("tests/test_schedules.py::test_the_papers_numbers_are_the_defaults"),
    ),
]

JAX = [
    Mutant(
        "jax_divides_after_the_sum",
        "backends/jax.py",
        "    mean = jnp.sum(x / n, others)\n",
        "    mean = jnp.sum(x, others) / n\n",
        accuracy("images-renorm-native"),
    ),
    Mutant(
        "jax_takes_a_masked_mean_for_one_number",
        "backends/jax.py",
        "    residual = jnp.sum(fractions * centered, others)\n",
        "    residual = jnp.zeros_like(mean)\n",
        only(f"{COMBINATIONS}[a masked mean that XLA rounds in two ways]"),
    ),
    Mutant(
        "jax_multiplies_a_large_element_before_its_weight",
        "backends/jax.py",
        "first, second = weights * dx, (weights * centered) * dx",
        "first, second = weights * dx, weights * (centered * dx)",
        only(f"{COMBINATIONS}[a square that overflows where the weight is 0]"),
    ),
    Mutant(
        "jax_rounds_the_mean",
        "backends/jax.py",
        "jnp.any(jnp.square(mean) > _CONDITION_LIMIT**2 * variance),",
        "jnp.any(jnp.square(mean) < 0.0),",
        accuracy("many_rows-plain-native"),
    ),
    Mutant(
        "jax_rounds_the_mean_of_few_elements",
        "backends/jax.py",
        "        return corrected_two_pass(mean, variance_about(mean))\n",
        "        return mean, jnp.zeros_like(mean), variance_about(mean)\n",
        accuracy("rows-plain-native"),
    ),
    Mutant(
        "jax_takes_few_elements_for_many",
        "backends/jax.py",
        "    if x.size <= _TINY:\n        return always()\n",
        "",
        accuracy("rows-plain-native"),
        reason="both ways keep the digits, and the choice of one saves time only",
    ),
    Mutant(
        "jax_takes_many_elements_for_few",
        "backends/jax.py",
        "    if x.size <= _TINY:\n",
        "    if True:\n",
        accuracy("many_rows-plain-native"),
        reason="both ways keep the digits, and the choice of one saves time only",
    ),
    Mutant(
        "jax_drops_what_rounding_leaves",
        "backends/jax.py",
        "return mean, (shift - mean) + residual",
        "return mean, jnp.zeros_like(mean)",
        accuracy("rows-plain-native"),
    ),
    Mutant(
        "jax_normalizes_by_x_a_b",
        "backends/jax.py",
        "    offset = affine.beta - residual * scale\n"
        "    y = centered * per_element(scale) + per_element(offset)\n",
        "    offset = affine.beta - (shift + residual) * scale\n"
        "    y = _widened(x) * per_element(scale) + per_element(offset)\n",
        accuracy("rows-plain-native"),
    ),
    Mutant(
        "jax_adds_the_gradient_of_the_variance",
        "backends/jax.py",
        "p = inverse * dgamma - scale * second",
        "p = inverse * dgamma + scale * second",
        gradients("dense"),
    ),
    Mutant(
        "jax_swaps_the_two_sums",
        "backends/jax.py",
        "    p = inverse * dgamma - scale * second\n    q = dbeta - scale * first\n",
        "    p = inverse * dgamma - scale * first\n    q = dbeta - scale * second\n",
        gradients("dense"),
    ),
    Mutant(
        "jax_forgets_the_residual_in_the_gradient",
        "backends/jax.py",
        "dy = dy + per_element(q - residual * p)",
        "dy = dy + per_element(q)",
        accuracy("rows-plain-native"),
    ),
    Mutant(
        "jax_forgets_the_residual_in_a_sum",
        "backends/jax.py",
        "return first, jnp.sum(second, others) - statistics.residual * first",
        "return first, jnp.sum(second, others)",
        accuracy("rows-plain-native"),
    ),
    Mutant(
        "jax_takes_the_same_difference_twice",
        "backends/jax.py",
        "    centered = _widened(x) + per_element(-shift)\n",
        "    centered = _widened(x) - per_element(shift)\n",
        gradients("dense"),
        reason="the numbers are the same: it keeps XLA from writing an array",
    ),
    Mutant(
        "jax_multiplies_0_by_infinity",
        "backends/jax.py",
        "return tuple(jnp.where(inverse_count > 0, inverse_count * s, 0.0) for "
        "s in sums)",
        "return tuple(inverse_count * s for s in sums)",
        combination("inf"),
    ),
    Mutant(
        "jax_halves_the_variances_derivative",
        "backends/jax.py",
        "Statistics(zeros, first, 2.0 * second, constant)",
        "Statistics(zeros, first, second, constant)",
        only(f"{DERIVATIVES}::test_second_order_is_that_of_the_oracle"),
    ),
    Mutant(
        "jax_ignores_weights_in_gradients",
        "backends/jax.py",
        "weights = jnp.where(weights > 0, weights, 0.0)",
        "weights = jnp.where(weights > 0, 1.0, 0.0)",
        gradients("weights"),
    ),
    Mutant(
        "jax_gives_padding_a_gradient",
        "backends/jax.py",
        "        dy = jnp.where(_are_valid(x, weights), dy, per_element(dbeta))\n",
        "        pass\n",
        combination("poison"),
    ),
    Mutant(
        "jax_outputs_padding",
        "backends/jax.py",
        "return jnp.where(_are_valid(x, weights), centered, residual)",
        "return centered",
        behaviour("test_nan_in_padding_gives_beta_on_each_implementation"),
    ),
    Mutant(
        "jax_keeps_more_than_the_inputs",
        "backends/jax.py",
        "tangent = jax.checkpoint(functools.partial(_tangent, axes, epsilon))",
        "tangent = functools.partial(_tangent, axes, epsilon)",
        only("tests/test_memory.py::test_the_inputs_alone_are_kept"),
    ),
    Mutant(
        "jax_differentiates_its_moments",
        "backends/jax.py",
        "    batch = batch._replace(x=jax.lax.stop_gradient(batch.x))\n",
        "",
        survivors("test_no_gradient_flows_through_the_statistics"),
    ),
    Mutant(
        "jax_is_always_the_first_replica",
        "backends/jax.py",
        "        jax.lax.axis_index(axis_name),\n",
        "        0,\n",
        only(f"{BACKEND}/test_jax.py::test_a_named_axis_is_that_of_the_replicas"),
    ),
    Mutant(
        "jax_knows_no_traced_values",
        "backends/jax.py",
        "return isinstance(value, jax.core.Tracer)",
        "return False",
        only(f"{BACKEND}/test_jax.py::test_traced_values_are_known"),
    ),
    Mutant(
        "jax_does_not_zero_inverse_count",
        "ops/statistics.py",
        "inverse_count = ops.cast(usable, mean.dtype) / moments.count",
        "inverse_count = 1.0 / moments.count",
        combination("traced_false"),
        backend="jax",
    ),
    Mutant(
        "native_takes_synchronized_batches",
        "batch_normalization.py",
        "synchronized = reduction.sum_gradients is not None",
        "synchronized = False",
        only("tests/test_synchronized.py::test_replicas_are_one_batch[2]"),
        backend="jax",
    ),
]

TENSORFLOW = [
    Mutant(
        "tensorflow_divides_after_the_sum",
        "backends/tensorflow.py",
        "mean = _sum(values, channels, rows, factor=1.0 / n)",
        "mean = _sum(values, channels, rows) / n",
        accuracy("images-xla_renorm-native"),
    ),
    Mutant(
        "tensorflow_rounds_the_mean",
        "backends/tensorflow.py",
        "needs_shift = tf.reduce_any(tf.square(mean) > _CONDITION_LIMIT**2 * variance)",
        "needs_shift = tf.reduce_any(tf.square(mean) < 0.0)",
        accuracy("many_rows-plain-native"),
    ),
    Mutant(
        "tensorflow_normalizes_by_x_a_b",
        "backends/tensorflow.py",
        "    centered = _widened(values) - shift\n"
        "    return tf.cast(centered * scale + offset, values.dtype)\n",
        "    offset = offset - shift * scale\n"
        "    return tf.cast(_widened(values) * scale + offset, values.dtype)\n",
        accuracy("rows-unknown_sizes-native"),
    ),
    Mutant(
        "tensorflow_folds_a_large_mean",
        "backends/tensorflow.py",
        "is_large = tf.abs(mean) > _FOLDABLE * stddev",
        "is_large = tf.abs(mean) < 0.0",
        only(f"{BACKEND}/test_tensorflow.py::test_compiled_outputs_keep_their_digits"),
    ),
    Mutant(
        "tensorflow_fuses_what_does_not_fit",
        "backends/tensorflow.py",
        "fits = tf.reduce_all((inverse_count > 0) & (residual == 0))",
        "fits = tf.constant(True)",
        accuracy("many_channels-plain-native"),
    ),
    Mutant(
        "tensorflow_takes_the_sums_of_a_row_for_those_of_all",
        "backends/tensorflow.py",
        "        return rows.repeated(one)\n",
        "        return sums\n",
        only(f"{SEEN_AS_ONE}[(36000, 1)]"),
    ),
    Mutant(
        "tensorflow_counts_a_row_of_many_as_one",
        "backends/tensorflow.py",
        "_count(values, channels) * rows.repeats",
        "_count(values, channels)",
        only(f"{SEEN_AS_ONE}[(36000, 1)]"),
    ),
    Mutant(
        "tensorflow_drops_the_tail_of_blocks",
        "backends/tensorflow.py",
        "            total += tf.reduce_sum(rows[full:], axis=0)\n",
        "",
        outputs("few_channels_odd", implementation="generic"),
    ),
    Mutant(
        "tensorflow_drops_the_tail_of_rows",
        "backends/tensorflow.py",
        "return tf.reduce_sum(parts, axis=0) + tf.reduce_sum(tail * factor, axis=0)",
        "return tf.reduce_sum(parts, axis=0)",
        outputs("few_channels_odd", "many_rows"),
    ),
    Mutant(
        "tensorflow_recomputes_as_if_first",
        "backends/tensorflow.py",
        '        if frame.f_code.co_name == "inner_recompute_grad":\n',
        "        if False:\n",
        only(f"{BACKEND}/test_tensorflow.py::test_recomputing_is_seen"),
    ),
]

LAYERS_IN_LAYERS = f"{CONVERSION}::test_layers_in_layers_are_converted_and_reverted"
EXCHANGE = [
    Mutant(
        "layers_in_layers_take_another_place",
        "tools/conversion.py",
        'tracker.replace_tracked_value("layers", new, layer)',
        "tracker.untrack(new)",
        only(f"{LAYERS_IN_LAYERS}[Network]"),
    ),
    Mutant(
        "layers_in_layers_are_built_too_early",
        "tools/conversion.py",
        "from_config(_not_built(layer.get_config()))",
        "from_config(layer.get_config())",
        only(f"{LAYERS_IN_LAYERS}[wrapped_network]"),
    ),
    Mutant(
        "layers_in_layers_lose_their_names",
        "tools/conversion.py",
        "            elif old.name != new.name:\n",
        "            elif False:\n",
        only(f"{LAYERS_IN_LAYERS}[wrapped_network]"),
    ),
    Mutant(
        "what_only_a_constructor_makes_is_refused",
        "tools/conversion.py",
        "                except ValueError:\n                    self.fill(old, new)\n",
        "                except ValueError:\n                    raise\n",
        only(f"{LAYERS_IN_LAYERS}[Network]"),
    ),
    Mutant(
        "what_is_made_in_build_stays",
        "tools/conversion.py",
        "if type(layer) in _CONVERTED and id(layer) not in known:",
        "if False:",
        only(f"{CONVERSION}::test_normalizations_made_in_build_are_named"),
    ),
    Mutant(
        "reverted_options_are_dropped",
        "tools/conversion.py",
        'more = set(config) - set(KERAS().get_config()) - {"axes"}',
        "more = set()",
        only(f"{CONVERSION}::test_all_that_keras_lacks_is_listed"),
    ),
    Mutant(
        "reverted_weights_are_rounded",
        "tools/conversion.py",
        'if layer.variable_dtype in ("float16", "bfloat16"):',
        "if False:",
        only(f"{CONVERSION}::test_all_that_keras_lacks_is_listed"),
    ),
    Mutant(
        "reverted_layers_thaw",
        "tools/conversion.py",
        "return old.trainable and not (of_keras and len(old.frozen) == 2)",
        "return old.trainable",
        only(f"{CONVERSION}::test_layers_frozen_as_a_whole_do_not_train_when_reverted"),
    ),
    Mutant(
        "pytorchs_divisor_is_forgotten",
        "tools/libraries.py",
        'library, unbiased = "PyTorch", True',
        'library, unbiased = "PyTorch", False',
        only(f"{INTEROP}::test_the_next_update_is_pytorchs"),
    ),
    Mutant(
        "pytorchs_momentum_is_kerass",
        "tools/libraries.py",
        "    return round(1.0 - momentum, 15)\n",
        "    return round(momentum, 15)\n",
        only(f"{TORCH_INTEROP}::test_modules_become_layers_and_come_back[2-0.1-True]"),
    ),
    Mutant(
        "pytorchs_momentum_comes_back_rounded",
        "tools/libraries.py",
        "    return round(1.0 - momentum, 15)\n",
        "    return 1.0 - momentum\n",
        only(f"{TORCH_INTEROP}::test_modules_become_layers_and_come_back[2-0.1-True]"),
    ),
    Mutant(
        "the_count_stays_behind",
        "tools/interop.py",
        "            updates.assign(ops.full_like(updates.value, count))\n",
        "            pass\n",
        only(f"{INTEROP}::test_a_cumulative_average_goes_on_from_its_count"),
    ),
    Mutant(
        "depthwise_channels_are_transposed",
        "tools/libraries.py",
        "flat = kernel.reshape(*kernel.shape[:-2], -1)",
        "flat = kernel.swapaxes(-1, -2).reshape(*kernel.shape[:-2], -1)",
        only(f"{INTEROP}::test_kernels_are_where_pytorch_has_them"),
    ),
    Mutant(
        "settings_that_differ_pass",
        "tools/interop.py",
        "    found = theirs.differences(ours)\n",
        "    found = []\n",
        only(
            f"{INTEROP}::test_settings_that_differ_are_named"
            "[arguments0-given0-epsilon 1e-05 and 0.001]"
        ),
    ),
    Mutant(
        "weights_are_rounded_silently",
        "tools/interop.py",
        "kept is None or not np.array_equal(kept, array, equal_nan=True)",
        "kept is None",
        only(f"{INTEROP}::test_float64_stays_float64"),
    ),
    Mutant(
        "a_failed_exchange_stays_half_done",
        "tools/interop.py",
        "            write(place, value)\n        raise\n",
        "            pass\n        raise\n",
        only(
            f"{TORCH_INTEROP}::test_modules_that_differ_are_named_and_nothing_is_changed"
            "[rounded|put back]"
        ),
    ),
    Mutant(
        "strides_that_differ_pass",
        "tools/libraries.py",
        "        if theirs != ours:\n",
        "        if False:\n",
        only(
            f"{TORCH_INTEROP}::test_modules_that_differ_are_named_and_nothing_is_changed"
            "[Strides.*blocks.1.conv1]"
        ),
    ),
]


OBSERVATION = "tests/tools/test_observation.py"
RECALIBRATION = "tests/tools/test_recalibration.py"
REPLICAS_RECALIBRATED = "tests/tools/test_recalibration_on_replicas.py"
REPORT, CHECKS = "tests/tools/test_report.py", "tests/tools/test_checks.py"


def planted(*rules):
    """The test of the models that these rules find something in."""
    test = f"{CHECKS}::test_a_planted_fault_is_found_and_its_cure_is_not"
    return only(*[f"{test}[{rule}-BatchNormalization1]" for rule in rules])


OBSERVING = [
    Mutant(
        "models_in_reverse",
        "tools/models.py",
        "waiting += reversed(parts)",
        "waiting += parts",
        only("tests/tools/test_models.py"),
    ),
    Mutant(
        "names_not_told_apart",
        "tools/models.py",
        "own.count(layer.name) == 1",
        "own.count(layer.name) > 0",
        only(f"{REPORT}::test_layers_of_one_name_are_told_apart"),
    ),
    Mutant(
        "population_without_between",
        "tools/observation.py",
        "fraction * (1.0 - fraction) * np.square(difference)",
        "0.0 * np.square(difference)",
        only(f"{OBSERVATION}::test_a_population_is_that_of_all_its_parts"),
    ),
    Mutant(
        "population_of_equal_batches",
        "tools/observation.py",
        "fraction = count / np.where(total > 0, total, 1.0)",
        "fraction = np.where(count > 0, 1.0 / (1 + (self.count > 0)), 0.0)",
        only(f"{OBSERVATION}::test_a_population_is_that_of_all_its_parts"),
    ),
    Mutant(
        "population_takes_nan",
        "tools/observation.py",
        "new = (count > 0) & np.isfinite(variance)",
        "new = count > 0",
        only(f"{OBSERVATION}::test_a_population_leaves_out_what_is_not_finite"),
    ),
    Mutant(
        "observed_layers_in_inference",
        "tools/observation.py",
        "        if not is_trained(layer):\n"
        "            return original(inputs, training=False, mask=mask)\n",
        "        return original(inputs, training=False, mask=mask)\n",
        only(
            f"{OBSERVATION}::test_layers_see_what_layers_that_normalize_by_the_batch_give"
        ),
    ),
    Mutant(
        "observed_frozen_layers_in_batch_mode",
        "tools/observation.py",
        "        if not is_trained(layer):\n",
        "        if False:\n",
        only(f"{OBSERVATION}::test_other_layers_are_in_inference_and_frozen_ones_stay"),
    ),
    Mutant(
        "observed_in_training",
        "tools/observation.py",
        "functools.partial(model, training=False)",
        "functools.partial(model, training=True)",
        only(f"{OBSERVATION}::test_other_layers_are_in_inference_and_frozen_ones_stay"),
    ),
    Mutant(
        "observed_without_mask",
        "tools/observation.py",
        "weights = None if mask is None else",
        "weights = None if True else",
        only(f"{OBSERVATION}::test_a_mask_counts"),
    ),
    Mutant(
        "observation_stays",
        "tools/observation.py",
        '            del attributes["call"]\n',
        "            pass\n",
        only(f"{OBSERVATION}::test_nothing_of_the_model_changes"),
    ),
    Mutant(
        "observation_that_ends_early",
        "tools/observation.py",
        "if steps is not None and self.batches < steps:",
        "if False:",
        only(f"{RECALIBRATION}::test_bad_data_leave_the_model_as_it_was"),
    ),
    Mutant(
        "replicas_each_by_itself",
        "tools/observation.py",
        "    if context is not None:\n        _join(context, layers, seen, run)\n",
        "",
        only(REPLICAS_RECALIBRATED),
    ),
    Mutant(
        "replicas_that_wait_for_ever",
        "tools/observation.py",
        "    if rows[:, 0].any():\n",
        "    if False:\n",
        only(REPLICAS_RECALIBRATED),
    ),
    Mutant(
        "distance_without_epsilon",
        "tools/distance.py",
        "scale = np.sqrt(population.variance + epsilon)",
        "scale = np.sqrt(population.variance)",
        only(f"{RECALIBRATION}::test_the_record_says_how_far_statistics_were"),
    ),
    Mutant(
        "error_of_the_mean_alone",
        "tools/distance.py",
        "np.hypot(self.mean, self.ratio - 1.0) / self.ratio",
        "np.abs(self.mean) / self.ratio",
        only(f"{RECALIBRATION}::test_the_record_says_how_far_statistics_were"),
    ),
    Mutant(
        "recalibration_with_divisor_n",
        "tools/recalibration.py",
        'if getattr(layer, "unbiased_moving_variance", False):',
        "if False:",
        only(f"{RECALIBRATION}::test_the_divisor_is_the_layers"),
    ),
    Mutant(
        "recalibration_of_frozen_layers",
        "tools/recalibration.py",
        "        if not is_trained(layer):\n            continue\n",
        "",
        only(f"{RECALIBRATION}::test_frozen_layers_keep_their_statistics"),
    ),
    Mutant(
        "recalibration_half_done",
        "tools/recalibration.py",
        "    except BaseException:\n        # Ctrl-C as well",
        "    except Exception:\n        # Ctrl-C as well",
        only(
            f"{RECALIBRATION}::"
            "test_an_interrupt_while_statistics_are_written_undoes_them"
        ),
    ),
    Mutant(
        "undo_forgets_history",
        "tools/recalibration.py",
        "[v for v in layer.variables if v is not layer.gamma and v is not layer.beta]",
        "[layer.moving_mean, layer.moving_variance]",
        only(f"{RECALIBRATION}::test_undo_restores_bit_for_bit"),
    ),
    Mutant(
        "callback_keeps_statistics_in_training",
        "tools/recalibration.py",
        "        self._epoch = epoch\n        self._leave()\n",
        "        self._epoch = epoch\n",
        only(
            f"{RECALIBRATION}::"
            "test_training_is_the_same_with_the_callback_and_evaluation_is_not"
        ),
    ),
    Mutant(
        "callback_saves_the_moving_ones",
        "tools/recalibration.py",
        'if self._is_due() and self._swaps() in (None, "on_epoch"):',
        "if False:",
        only(f"{RECALIBRATION}::test_what_is_saved_evaluates_as_reported"),
    ),
    Mutant(
        "callback_in_any_order",
        "tools/recalibration.py",
        "        if wrong:\n",
        "        if False:\n",
        only(f"{RECALIBRATION}::test_a_wrong_order_is_refused_with_the_right_one"),
    ),
    Mutant(
        "cumulative_average_starts_anew",
        "averages.py",
        "known = updates if layer.momentum is None else math.inf",
        "known = 0",
        only(f"{RECALIBRATION}::test_a_cumulative_average_goes_on"),
    ),
    Mutant(
        "report_in_any_order",
        "tools/report.py",
        "sorted(rows, key=lambda row: -row.harm)",
        "list(rows)",
        only(f"{REPORT}::test_rows_compare_moving_statistics_with_the_datas"),
    ),
    Mutant(
        "report_counts_negative_gamma_as_dead",
        "tools/report.py",
        "int((np.abs(gamma) < DEAD).sum())",
        "int((gamma < DEAD).sum() + 1)",
        only(f"{REPORT}::test_channels_are_counted"),
    ),
    Mutant(
        "half_a_file",
        "tools/models.py",
        "        yield beside\n",
        "        yield path\n",
        only(f"{REPORT}::test_a_write_that_fails_leaves_the_old_file"),
    ),
    Mutant(
        "check_bias_with_activation",
        "tools/checks.py",
        'biased = getattr(layer, "use_bias", False) and activation_of(layer) is None',
        'biased = hasattr(layer, "use_bias")',
        planted("bias"),
    ),
    Mutant(
        "check_dropout_through_normalizations",
        "tools/checks.py",
        "if id(producer) in seen or isinstance(layer, _NORMALIZATIONS):",
        "if id(producer) in seen:",
        planted("dropout"),
    ),
    Mutant(
        "check_any_last_layer",
        "tools/checks.py",
        "if softmax or flow.is_output(call):",
        "if softmax:",
        planted("last"),
    ),
    Mutant(
        "check_masks_always_lost",
        "tools/checks.py",
        'if not getattr(layer, "supports_masking", False):',
        "if True:",
        planted("mask_lost"),
    ),
    Mutant(
        "check_momentum_in_too_many_steps",
        "tools/checks.py",
        "if rest > 0.01 and (are_planned",
        "if rest > 2.0 and (are_planned",
        planted("momentum", "never_moves"),
    ),
    Mutant(
        "check_accumulation_unscaled",
        "tools/checks.py",
        "and layer.momentum**count < 0.99 - 1e-6",
        "and layer.momentum < 1.0",
        planted("accumulation"),
    ),
    Mutant(
        "command_that_never_fails",
        "__main__.py",
        "return FAILED if findings.errors else 0",
        "return 0",
        only("tests/test_main.py::test_check_fails_on_errors_only"),
    ),
    Mutant(
        "command_that_overwrites",
        "__main__.py",
        "if path.exists() and not arguments.overwrite:",
        "if False:",
        only("tests/test_main.py::test_what_cannot_be_done_says_so_and_writes_nothing"),
    ),
    Mutant(
        "command_that_writes_in_place",
        "__main__.py",
        "        model.save(beside)\n",
        "        model.save(path)\n",
        only("tests/test_main.py::test_a_write_that_fails_leaves_the_old_file"),
    ),
    Mutant(
        "flow_stops_at_nested_models",
        "tools/graphs.py",
        "self._same |= zip(map(id, starts), call.inputs, strict=False)",
        "pass",
        only(f"{CHECKS}::test_nested_models_are_looked_into"),
    ),
]


FOLDING = [
    Mutant(
        "folds_without_the_deviation",
        "tools/affine.py",
        'scale = self.weights["gamma"] * self.inverse',
        'scale = self.weights["gamma"] * 1.0',
        only(f"{FOLD}weights_are_computed_in_float64_and_rounded_once"),
    ),
    Mutant(
        "folds_the_means_the_wrong_way",
        "tools/affine.py",
        "shift = self._bias() - self.mean * scale",
        "shift = self._bias() + self.mean * scale",
        only(f"{FOLD}weights_are_computed_in_float64_and_rounded_once"),
    ),
    Mutant(
        "folds_statistics_as_stored",
        "tools/affine.py",
        "    if not isinstance(layer, BatchNormalization):\n",
        "    if True:\n",
        only(f"{FOLD}arguments_of_ours_are_folded"),
    ),
    Mutant(
        "folds_the_bias_unscaled",
        "tools/affine.py",
        "self._bias() * scale + shift",
        "self._bias() + shift",
        only(f"{FOLD}weights_are_computed_in_float64_and_rounded_once"),
    ),
    Mutant(
        "folds_groups_one_by_one",
        "tools/affine.py",
        "np.repeat(groups, self._sizes()[1] // len(groups), axis=0).T",
        "np.tile(groups.T, self._sizes()[1] // len(groups))",
        only(f"{FOLD}every_linear_layer_takes_what_is_behind_and_before_it"),
    ),
    Mutant(
        "folds_depthwise_by_multiplier",
        "tools/affine.py",
        'return vector.reshape(self.weights["kernel"].shape[-2:])',
        'return vector.reshape(self.weights["kernel"].shape[:-3:-1]).T',
        only(f"{FOLD}every_linear_layer_takes_what_is_behind_and_before_it"),
    ),
    Mutant(
        "folds_shifts_into_padding",
        "tools/affine.py",
        'pads = layer.padding != "valid" and',
        "pads = False and",
        only(f"{FOLD}padding_matters_only_before_the_layer"),
    ),
    Mutant(
        "folds_into_no_same_padding",
        "tools/affine.py",
        "* stride + reach > size",
        "* stride + reach >= size",
        only(f"{FOLD}same_padding_that_pads_nothing_is_none"),
    ),
    Mutant(
        "folds_shifts_into_transposed",
        "tools/affine.py",
        "if max(*layer.kernel_size, *layer.strides) > 1:",
        "if False:",
        only(f"{FOLD}transposed_convolutions_take_what_is_behind_them"),
    ),
    Mutant(
        "folds_through_any_activation",
        "tools/affine.py",
        "layer.activation is not keras.activations.linear",
        "False",
        only(f"{FOLD}what_is_kept_has_its_reason"),
    ),
    Mutant(
        "folds_through_maxima",
        "tools/affine.py",
        "if kind in _MAXIMA and (affine.scale < 0).any():",
        "if False:",
        only(f"{FOLD}maxima_let_maps_through_that_keep_the_order"),
    ),
    Mutant(
        "folds_through_zero_padding",
        "tools/affine.py",
        "if kind in _PADDINGS and affine.shift.any():",
        "if False:",
        only(f"{FOLD}explicit_padding_is_passed_by_maps_without_a_shift"),
    ),
    Mutant(
        "folds_through_any_interpolation",
        "tools/affine.py",
        'layer.interpolation not in ("nearest", "bilinear")',
        "False",
        only(f"{FOLD}what_is_kept_has_its_reason"),
    ),
    Mutant(
        "folds_flattened_channels_first_as_last",
        "tools/affine.py",
        "if type(layer) is layers.Flatten and _channels_first(layer) and",
        "if False and",
        only(f"{FOLD}flattening_and_reshaping_are_followed"),
    ),
    Mutant(
        "folds_the_wrong_part",
        "tools/affine.py",
        "a.take(range(ends[i] - sizes[i], ends[i]), axis)",
        "a.take(range(sizes[i]), axis)",
        only(f"{FOLD}concatenated_layers_take_a_part_each"),
    ),
    Mutant(
        "folds_into_constraints",
        "tools/affine.py",
        'if getattr(layer, f"{name}_constraint", None) is not None:',
        "if False:",
        only(f"{FOLD}what_is_kept_has_its_reason"),
    ),
    Mutant(
        "folds_einsum_biases_of_less_axes",
        "tools/affine.py",
        "if size > 1 or letter in self.bias_axes",
        "if letter in self.bias_axes",
        only(f"{FOLD}a_bias_of_fewer_axes_gets_those_of_the_normalization"),
    ),
    Mutant(
        "folds_and_forgets_statistics",
        "tools/affine.py",
        "        for weight, value in zip(new, old, strict=True):\n",
        "        for weight, value in ():\n",
        only(f"{FOLD}any_number_in_a_row_is_folded"),
    ),
    Mutant(
        "folds_what_others_use",
        "tools/folding.py",
        "if len(self._users[id(tensor)]) > 1:",
        "if False:",
        only(f"{FOLD}what_is_kept_has_its_reason"),
    ),
    Mutant(
        "folds_into_one_of_two",
        "tools/folding.py",
        "if call is None or more:",
        "if call is None:",
        only(f"{FOLD}what_is_kept_has_its_reason"),
    ),
    Mutant(
        "folds_into_shared_layers",
        "tools/folding.py",
        '[id(layer)]) > 1:\n            raise Kept(f"{described',
        '[id(layer)]) > 9:\n            raise Kept(f"{described',
        only(f"{FOLD}what_is_kept_has_its_reason"),
    ),
    Mutant(
        "folds_before_activations",
        "tools/folding.py",
        "            if activation_of(layer) is not None:\n",
        "            if False:\n",
        only(f"{FOLD}what_is_kept_has_its_reason"),
    ),
    Mutant(
        "folds_over_dtypes",
        "tools/folding.py",
        "if layer.compute_dtype != normalization.compute_dtype:",
        "if False:",
        only(f"{FOLD}what_is_kept_has_its_reason"),
    ),
    Mutant(
        "folds_the_first_first",
        "tools/folding.py",
        "for call in reversed(left):",
        "for call in left:",
        only(f"{FOLD}any_number_in_a_row_is_folded"),
    ),
    Mutant(
        "folds_far_means",
        "tools/folding.py",
        "if far * np.finfo(dtype).eps > _FARTHEST_MEAN:",
        "if False:",
        only(f"{FOLD}means_that_would_cost_digits_are_kept_before_a_layer"),
    ),
    Mutant(
        "folds_to_infinity",
        "tools/folding.py",
        'np.finfo("float16" if half else "float32").max',
        'np.finfo("float32").max',
        only(f"{FOLD}weights_that_would_overflow_are_kept"),
    ),
    Mutant(
        "folds_models_with_a_call",
        "tools/graphs.py",
        "is_built(layer) and type(layer).call is cls.call",
        "is_built(layer)",
        only(f"{FOLD}what_cannot_be_folded_is_refused"),
    ),
    Mutant(
        "folds_calls_that_train",
        "tools/graphs.py",
        "v is not None and v is not False for v in others.values()",
        "False for v in others.values()",
        only(f"{FOLD}what_is_kept_has_its_reason"),
    ),
]


def on(backend, mutants):
    """The same rows on another backend."""
    return [replace(mutant, backend=backend) for mutant in mutants]


MUTANTS = [
    *STEPS,
    *LAYER,
    *ARGUMENTS,
    *GENERIC,
    *TORCH,
    *TOOLS,
    *OBSERVING,
    *EXCHANGE,
    *FOLDING,
    *on("jax", JAX),
    *on("tensorflow", TENSORFLOW),
]
